"""What is logged of a run: metrics, declared once, and where they go."""

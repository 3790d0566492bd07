"""The environment side: vector environments behind one face, collection, evaluation."""

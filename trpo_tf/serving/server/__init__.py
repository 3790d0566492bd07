"""A server for development: the part of TF Serving's REST and gRPC interfaces that clients of a policy use.

It serves one model. It lacks batching of requests, several models, labels, Classify and Regress, gzip, monitoring,
authentication and encryption. The model runs in TensorFlow's session loader, as it does in TF Serving.
"""

LARGEST_REQUEST = 32 << 20  # bytes

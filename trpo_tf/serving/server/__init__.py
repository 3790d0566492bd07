"""A server for development: the part of TF Serving's REST and gRPC interfaces that clients of a policy use.

It serves one model. It lacks batching of requests, several models, labels, Classify and Regress, gzip, monitoring,
authentication and encryption. The model runs in TensorFlow's session loader, as it does in TF Serving.
"""

LARGEST_REQUEST = 32 << 20  # bytes
LARGEST_BATCH = 10_000  # rows of a request
LONGEST_TEXT = 500  # characters of an answer that is an error
CONNECTIONS = 256  # at the same time, of each interface
HEADER_SECONDS = 10.0  # until a request's header has arrived
BODY_SECONDS = 30.0  # until its body has
IDLE_SECONDS = 60.0  # of a connection between two requests
GRACE_SECONDS = 2.0  # of requests under way when the server ends

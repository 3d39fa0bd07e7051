"""The wires: gRPC, REST."""

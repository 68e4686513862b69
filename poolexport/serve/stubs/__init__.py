"""The messages of the protocol over gRPC, compiled from ``inference.proto`` by ``generate.sh``."""

"""fastinfer: a low-latency inference server."""

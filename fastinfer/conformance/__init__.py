"""Checks of any server against the Open Inference Protocol and the extensions that Triton's clients call."""

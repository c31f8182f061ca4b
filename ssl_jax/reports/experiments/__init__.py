"""Tables, findings and figures of the experiments."""

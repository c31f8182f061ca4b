"""Tables, conclusions and figures of the experiments."""

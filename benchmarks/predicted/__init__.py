"""What other workers and links would do, by the model of `thinwire plan`."""

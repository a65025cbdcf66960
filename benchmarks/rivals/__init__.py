"""What people would use instead of thinwire: ordinary PyTorch loops on several devices."""

"""What runs measured, as one HTML page and a picture."""

"""A trained model behind other people's interfaces: one file a program, imported only when used."""

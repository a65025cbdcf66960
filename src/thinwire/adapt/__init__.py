"""A trained model to new text: more training, or small layers, and new words.

The ideas are those of Ter-Sarkisov, Schwenk, Barrault, Bougares 2014 (arXiv 1412.6650).
"""

"""The command line: one small file a verb, argv -> config -> exactly one call."""

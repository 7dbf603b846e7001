"""Arrays in, arrays out.  Nothing here knows a config, a mesh or a module."""

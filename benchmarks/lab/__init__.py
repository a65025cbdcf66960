"""An emulated cluster on one machine: devices with a link, and a part of a core, each."""

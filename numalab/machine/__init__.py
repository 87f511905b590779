"""Machines: topology, libvirt domain, session with the guest, and how a machine can end."""

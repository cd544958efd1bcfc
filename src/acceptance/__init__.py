"""Acceptance test of a machine: does everything this project does work on its device?

`machine.py` runs the checks and reports them. What computes on the device, `groups.py` starts in a
process of its own, since a process has one device and a faulty driver may end it.
"""

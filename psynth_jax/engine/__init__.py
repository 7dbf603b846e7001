"""What runs on the devices: compiled programs, who owns them, and where they outlive a process.

Token ids alone: no text, no HTTP.
"""

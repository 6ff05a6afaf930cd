"""Encoders in the formats of other libraries, and a folder for the Hub."""

"""Declarations of the commands: what they are called, what they take, what they say of themselves. They import click alone."""

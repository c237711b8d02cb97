"""`durable doctor`: checks of a store that are made for real, from several processes, on runs of their own."""

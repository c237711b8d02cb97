"""`durable doctor`: checks a store by using it, from several processes, on runs of its own."""

"""A small shop on durable: orders over HTTP, a worker that drives them, approvals by people, and a settlement each night."""

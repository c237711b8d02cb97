"""What makes two calls the same call: functions, arguments, a flow's input."""

"""The identity of calls: functions, arguments, and a flow's input."""

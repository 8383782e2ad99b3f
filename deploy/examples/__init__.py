"""Three small applications: a clock, a chat, and a chat on Django REST framework."""

"""Threads, caches, compiled code, Arrow; nothing here knows of archives."""

"""Conversations to token ids, whatever API they came through."""

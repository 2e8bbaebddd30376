"""Import: real trajectories become agents, and event lines become events again. Pure code over files; nothing here appends."""

from __future__ import annotations

from perdure.engine.importing.contract import FORMATS, BrokenRecord, Conversation
from perdure.engine.importing.event_lines import decode_line, encode_line
from perdure.engine.importing.reader import read_conversations

__all__ = ["FORMATS", "BrokenRecord", "Conversation", "decode_line", "encode_line", "read_conversations"]

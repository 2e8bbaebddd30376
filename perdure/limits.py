"""Every limit has a name and stands here.

Limits on input are part of the contract: what is above is refused with `LimitExceeded` before anything is stored.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- names ---
TENANT_LENGTH_MAX: Final = 128
AGENT_ID_LENGTH_MAX: Final = 256
TYPE_LENGTH_MAX: Final = 128
LABEL_LENGTH_MAX: Final = 256
"""source, actor, correlation, trace, project, module, in characters."""

# --- events ---
EVENT_BYTES_MAX: Final = 4 * MIB
"""One event's payload as canonical msgpack, before it is sealed."""
INLINE_BYTES_MAX: Final = 64 * KIB
"""A single value above this goes to content-addressed storage and is kept by reference."""
BLOB_BYTES_MAX: Final = 256 * MIB
EVENTS_PER_APPEND_MAX: Final = 10_000
AGENTS_PER_APPEND_MAX: Final = 1_000
CHANGES_PER_EVENT_MAX: Final = 10_000
PATH_DEPTH_MAX: Final = 64
NESTING_DEPTH_MAX: Final = 96
KEY_LENGTH_MAX: Final = 1_024
"""Length of a member name or a path token, in characters."""
METADATA_BYTES_MAX: Final = 64 * KIB

# --- the log ---
FORK_DEPTH_MAX: Final = 64
"""Forks of forks of forks …: agents in one line, whose rows are read with an agent's own."""
PARTITIONS_DEFAULT: Final = 16
PARTITIONS_MAX: Final = 256
SEGMENT_OFFSETS: Final = 100_000
"""Offsets in one segment of a partition (Postgres)."""
BATCH_EVENTS_MAX: Final = 512
"""Events that one group commit writes; it bounds the time a partition's lock is held. A single larger append goes alone."""
BATCH_BYTES_MAX: Final = 8 * MIB
WRITER_QUEUE_MAX: Final = 20_000
"""Appends that may wait for the writer before callers get `Overloaded`."""
WRITER_QUEUE_BYTES_MAX: Final = 256 * MIB
"""The same, by the sealed bytes of what waits."""
WRITER_HEADS_MAX: Final = 200_000
"""Agents whose newest version a writer remembers."""
TAIL_EVENTS_MAX: Final = 20_000
"""Events that others wrote and a writer catches up with under the lock; beyond, it forgets what it knew and asks anew."""
READ_PAGE_EVENTS: Final = 1_000
ID_CLOCK_MARGIN_S: Final = 10.0
"""How far a UUIDv7's time may be ahead of the log's clock. Because none is further ahead, an id's time tells which segments can hold it."""
APPEND_TIMEOUT_S: Final = 10.0
COMMIT_TIMEOUT_S: Final = 8.0
"""A server that says nothing for so long while it commits is given up: its connection is closed, and what it did is not known."""
COMMIT_BYTES_PER_S_MIN: Final = 4 * MIB
"""A large batch has so much longer as it takes at this rate."""
ANSWER_TIMEOUT_S: Final = 30.0
"""The same for whatever else it is asked."""
BLOB_TIMEOUT_S: Final = 120.0
"""The same for one large value."""

# --- security ---
SEALED_PLAINTEXT_BYTES_MAX: Final = EVENT_BYTES_MAX + METADATA_BYTES_MAX + 64 * KIB
"""What one seal may hold: an event's payload, its metadata and room for the envelope."""
DICTIONARY_PLAINTEXT_BYTES_MAX: Final = 256 * KIB
"""Larger plaintexts are compressed without a dictionary: it no longer helps them."""
TENANT_KEY_VERSIONS_MAX: Final = 255
"""Rotations of one tenant's key; the version is one byte of every sealed value."""
TENANT_KEYS_CACHED_MAX: Final = 10_000
KEY_CACHE_LIFETIME_S: Final = 60.0
"""A tenant's key is used so long before the log and the key provider are asked for it again."""
KEY_CACHE_OUTAGE_S: Final = 900.0
"""A tenant's key goes on to be used so long while the log or the key provider is away."""
KEY_RENEWAL_WAIT_S: Final = 1.0
"""Who has a key waits so long for its renewal; then the key is used on as in an outage."""
KEY_CACHE_RETRY_S: Final = 30.0
"""Pause between two attempts to renew a key while one of them is away."""
KEY_SERVICE_TIMEOUT_S: Final = 5.0
"""Of one request to a key service."""
KEY_SERVICE_ATTEMPTS_MAX: Final = 4
KEY_SERVICE_RETRY_S: Final = 15.0
"""A request to a key service that is away is repeated for so long, and at most so often."""
KEYS_LISTED_AT_ONCE_MAX: Final = 16
REWRAP_PAGE_AGENTS: Final = 500
"""Agents whose data keys are wrapped anew in one transaction."""
REWRAP_PASSES_MAX: Final = 4
AGENT_ERAS_MAX: Final = 64
"""Moves of one agent between engines: the keys of each earlier one stay with it."""
KEY_FILE_BYTES_MAX: Final = MIB
ROOT_KEYS_MAX: Final = 1_000
CONTROL_WRITE_ATTEMPTS_MAX: Final = 16
"""Compare-and-set attempts on one control document before `Unavailable`."""
DICTIONARY_BYTES_MAX: Final = 112 * KIB
DICTIONARIES_PER_TENANT_MAX: Final = 1_000
DICTIONARY_TENANTS_CACHED_MAX: Final = 256
"""Tenants whose dictionaries a process keeps although nobody uses them at the moment."""
TRAINING_SAMPLES_MIN: Final = 100
TRAINING_BYTES_MIN: Final = 32 * KIB
TRAINING_BYTES_MAX: Final = 16 * MIB
"""Training picks samples evenly until it has this many bytes."""

# --- moving agents between engines ---
MOVES_FRESH_S: Final = 0.5
"""A process looks for agents that are leaving this often while it serves reads; who moves one waits for it before the agent is fenced."""
TRANSFER_AGENTS_AT_ONCE_MAX: Final = 64
TRANSFER_AGENTS_AT_ONCE_DEFAULT: Final = 4
TRANSFER_AGENTS_AHEAD: Final = 32
"""Agents whose rows are marked before it is their turn, or whose move is being written down after it."""
TRANSFER_GROUP_AGENTS: Final = 8
"""Agents that begin to move together, and whose moves are written down together."""
TRANSFER_AHEAD_BYTES: Final = 64 * MIB
"""What those have that are copied and wait until every process knows that they go."""
TRANSFER_PAGE_BYTES: Final = 8 * MIB
"""About what a page of an agent's history has; two are in hands at once."""
TRANSFER_PAGE_EVENTS_MAX: Final = 10_000
TRANSFER_LAG_EVENTS: Final = 256
"""Once the target lacks no more than this, the source is fenced."""
TRANSFER_ROUND_S: Final = 0.25
"""And once a round took no longer than this: what was written meanwhile is little, too."""
TRANSFER_ROUNDS_MAX: Final = 20
"""Rounds in which an agent that is written to faster than it is copied is followed; then it is fenced as it is."""
TRANSFER_CLOCKS_APART_S: Final = 1.0
"""How far the clocks of two logs may be apart. With more, the time of an id would not tell any more where it can stand."""
TRANSFER_ROOM_FACTOR: Final = 2.0
"""Of what agents take in one log, what must be free at the other: they take as much there, and its own recovery log about as much for a while."""
TRANSFER_LIST_PAGE: Final = 500
TRANSFER_REPORT_MAX: Final = 1_000
"""Agents of one run that a report names."""

# --- stores of snapshots ---
STORE_NAME_LENGTH_MAX: Final = 512
STORE_OBJECT_BYTES_MAX: Final = 256 * MIB
STORE_LIST_PAGE_OBJECTS: Final = 1_000
STORE_THREADS: Final = 16
"""That one local store works with."""
STORE_REQUESTS_MAX: Final = 32
"""Requests to one store that are under way at once; more wait."""
STORE_BYTES_IN_FLIGHT_MAX: Final = 256 * MIB
"""Bytes of the contents that one store is being sent at once; more wait."""
STORE_UNSEEN_BYTES_MAX: Final = 4 * MIB
"""Before an object that may be larger is fetched, its size is asked for."""
STORE_ATTEMPTS_MAX: Final = 5
STORE_RETRY_S: Final = 30.0
"""A request to a store that is away is repeated for so long, and at most so often, before `Unavailable`."""
STORE_REQUEST_TIMEOUT_S: Final = 30.0
STORE_CONNECT_TIMEOUT_S: Final = 5.0

# --- snapshots ---
CHUNK_BYTES_MIN: Final = 32 * KIB
CHUNK_BYTES_STEP: Final = 96 * KIB
"""Bytes after `CHUNK_BYTES_MIN` in which a chunk ends on average."""
CHUNK_BYTES_MAX: Final = 192 * KIB
"""A chunk that has so many bytes ends; only a single large cell makes one that is much larger."""
CHUNK_UNIT_BYTES_MAX: Final = 32 * KIB
"""Up to here neighbouring list elements stay together."""
CHUNK_CELL_BYTES_MAX: Final = STORE_OBJECT_BYTES_MAX - MIB
CHUNK_PLAIN_BYTES_MAX: Final = CHUNK_CELL_BYTES_MAX + 16 * KIB
"""Of one chunk, decompressed."""
SNAPSHOT_CHUNKS_MAX: Final = 40_000
PACK_THREADS: Final = 2
"""That compress and seal the chunks of one large state."""
CHUNK_TRAINING_AGENTS_MIN: Final = 16
CHUNK_TRAINING_SAMPLES_MIN: Final = 256
"""Agents of one type, and pieces of 4 KiB of their states, that a process has seen before it trains a dictionary for them by itself."""
CHUNK_TRAINING_SAMPLES_PER_AGENT: Final = 32
CHUNK_TRAINING_TYPES_MAX: Final = 32
"""Types of agents that a process learns about at once."""
MANIFEST_BYTES_MAX: Final = SEALED_PLAINTEXT_BYTES_MAX + KIB
SNAPSHOT_REASON_LENGTH_MAX: Final = 4_000
"""Why a snapshot was made, in characters."""
SNAPSHOT_LOADS_MAX: Final = 16
"""Snapshots that a process loads at once; more wait."""
SNAPSHOT_WRITERS_MAX: Final = 256
"""Processes that write snapshots into one store at once."""
SNAPSHOT_BASES_BYTES_MAX: Final = 64 * MIB
"""States that a writer keeps at hand for the next snapshots, encoded; decoded they take about three times as much."""
SNAPSHOT_TURN_WAIT_S: Final = 60.0
"""How long a writer waits for the sweep of unreferenced chunks, and the sweep for writers."""

# --- keeping snapshots ---
SNAPSHOTS_NEWEST_MIN: Final = 3
"""So many of an agent's newest sound snapshots stay whatever a policy says, and the events after the oldest of them."""
RESTORE_PARTITIONS_AT_ONCE: Final = 3
"""Partitions that a restore fills at the same time; of each, one segment of a backup is in memory."""
REPLAY_BUDGET_EVENTS: Final = 1_000
REPLAY_BUDGET_BYTES: Final = 4 * MIB
"""What a load may have to replay before the snapshotter makes a new snapshot; larger for large states."""
SNAPSHOTTER_AGENTS_MAX: Final = 100_000
"""Agents whose distance from their newest snapshot a snapshotter remembers."""
SNAPSHOTTER_WAITING_MAX: Final = 1_000
"""Agents that may wait for a snapshot before the snapshotter stops reading the log."""
SNAPSHOTTER_PAGE_OFFSETS: Final = 5_000
SNAPSHOTTER_STATE_BYTES_MAX: Final = 512 * MIB
"""About what the states take that a snapshotter has in memory at once; a larger one is worked on alone."""
PROMOTION_EVENTS_MAX: Final = 500_000
"""Events of one partition that a promotion takes from the topic."""
CHECKPOINTS_PER_COMPACTION_MAX: Final = 1_000
COMPACTION_PAGE_EVENTS: Final = 2_000
"""Events that are removed in one transaction; it bounds the time that appends to the partition wait for it."""
SNAPSHOTS_PER_AGENT_MAX: Final = 10_000
"""Snapshots of one agent that retention and compaction look at, the newest."""
SWEEP_GRACE_MIN_S: Final = 600.0
"""Objects that nobody names stay at least for so long."""
SWEEP_ROWS_PAGE: Final = 500
SCRUB_SNAPSHOTS_MAX: Final = 100_000
"""Snapshots that one scrub reads."""
SNAPSHOT_HOLDS_MAX: Final = 1_000
"""Restores that may run at once."""

# --- schemas, dictionaries by themselves, the fast path ---
SCHEMA_BYTES_MAX: Final = 256 * KIB
"""A JSON Schema as text."""
SCHEMAS_MAX: Final = 1_000
"""Agent types with a published schema."""
IMPORT_CONCURRENCY_MAX: Final = 1_000
HEALTH_HISTORY_DAYS: Final = 90
"""How far back the history of an agent's health reaches unless told otherwise."""
LABELS_MAX: Final = 100
"""Labels of one agent."""
FAST_EVENTS_DEFAULT: Final = 100
FAST_EVENTS_MAX: Final = 5_000
"""Events of one agent that the fast path may merge into one."""
FAST_AGE_DEFAULT_S: Final = 1.0
FAST_AGE_MAX_S: Final = 3_600.0
"""How long an event may wait on the fast path, not durable."""
FAST_BYTES_MAX: Final = MIB
"""Of the events of one agent that wait on the fast path; then they are written."""
FAST_BYTES_TOTAL_MAX: Final = 64 * MIB
"""The same of all agents of a process; then whoever appends writes its agent's at once."""
TRAINING_EVENTS_MIN: Final = 2_000
"""Events of a tenant after which it gets a dictionary by itself."""
TRAINING_GROWTH: Final = 8
"""How many times more events a tenant must have than when its last dictionary was trained, for another one by itself."""
TRAINING_ROUNDS_MAX: Final = 4
TRAINING_LOOK_EVENTS: Final = 500
"""Events that a process appends for a tenant between two looks at whether it is worth a dictionary."""
TRAINING_OWN_BYTES_MAX: Final = 4 * MIB
"""Training by itself learns from this much, so that it takes a second of one core, not ten."""

# --- migration between nodes ---
ARRIVALS_AT_ONCE_MAX: Final = 64
"""Migrations that one target drives at once; the others wait for their turn."""
LARGE_ARRIVALS_AT_ONCE_MAX: Final = 4
"""Of these, migrations of states above `LARGE_ARRIVAL_BYTES`, which take memory and processor time."""
LARGE_ARRIVAL_BYTES: Final = MIB
MIGRATIONS_AT_ONCE_MAX: Final = 64
"""Agents that a drain, a rebalance or a rolling migration may move at once."""
PARKED_COMMANDS_MAX: Final = 10_000
"""Commands that wait on a node for agents which are about to come to it."""
WHERE_AGENTS_MAX: Final = 1_000
"""Agents that a caller looks for with one request."""
MOVED_REMEMBERED_MAX: Final = 100_000
"""Agents that left a node, and of which it still knows for a moment where they went."""

# --- rebuilding the cache ---
REBUILD_PAGE_AGENTS: Final = 200
"""Agents between two notes of how far a rebuild is; it bounds what a crash repeats."""
REBUILD_PARALLEL_MAX: Final = 64
"""Agents that a rebuild folds at once."""
REBUILD_ATTEMPTS_MAX: Final = 64
"""How often an agent is brought forward that is written to while it is cut over."""
REBUILD_PROBLEMS_MAX: Final = 100
"""Agents that a rebuild names because they could not be built; further ones are counted."""

# --- verifying ---
VERIFY_PAGE_AGENTS: Final = 200
"""Agents of which a verification reads rows and cached states at once."""
VERIFY_NOTE_S: Final = 2.0
"""How often a verification notes how far it is."""

# --- approvals and the audit trail ---
APPROVALS_OPEN_MAX: Final = 1_000
"""Approvals that may wait for a decision at once."""
AUDIT_TEXT_LENGTH_MAX: Final = 500
"""Why an operation failed, in characters."""

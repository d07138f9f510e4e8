"""Every limit, with its unit and its reason, in one place.

What a user may send is bounded so that one memory always fits one message of the broker (its default `max_payload` is
1 MiB); what is kept in memory is bounded so that a slow disk or a slow reader is felt by the writer and not by the
operating system's memory killer.
"""

from __future__ import annotations

from typing import Final

# -- what an agent may store -------------------------------------------------------------------------------------
CONTENT_BYTES_MAX: Final = 256 * 1024  # UTF-8
ID_BYTES_MAX: Final = 256
AGENT_BYTES_MAX: Final = 128
THREAD_BYTES_MAX: Final = 256
THREAD_AGENTS_MAX: Final = 1_024  # agents whose entries one entry of a thread comes after; its clock names each
TAG_BYTES_MAX: Final = 128
TAGS_MAX: Final = 64  # a memory
METADATA_KEYS_MAX: Final = 64  # a memory
METADATA_KEYS_REMEMBERED_MAX: Final = 512  # a memory's, removed ones included: each leaves a trace until a store
METADATA_KEY_BYTES_MAX: Final = 128
METADATA_BYTES_MAX: Final = 16 * 1024  # a memory's metadata as JSON
TTL_SECONDS_MAX: Final = 100 * 365 * 86_400
DOCUMENT_BYTES_MAX: Final = 384 * 1024  # a document's Yjs state; with its text and its tail it fits a MiB as base64
DOCUMENT_EDIT_BYTES_MAX: Final = 320 * 1024  # one block's Yjs update; a text that is replaced whole fits
QUERY_LIMIT_MAX: Final = 1_000  # memories a page
QUERY_TEXT_BYTES_MAX: Final = 4 * 1024
TOKEN_BYTES_MAX: Final = 1024 * 1024  # a token, version or cursor; a thousand partitions need a tenth of it
PATH_BYTES_MAX: Final = 4 * 1024  # of a file; PATH_MAX of the usual systems
RELEVANCE_RESULTS_MAX: Final = 1_000  # how deep one can page by relevance: its cursor names what was shown

# -- locks -------------------------------------------------------------------------------------------------------
LOCK_NAME_BYTES_MAX: Final = 128  # as base64 it is a part of a subject
LEASE_SECONDS: Final = 30.0  # of a lease whose holder names none, unless the cluster does
LEASE_SECONDS_ALLOWED: Final = 3_600.0  # at most, unless the cluster says otherwise
LEASE_SECONDS_MIN: Final = 1.0  # a broker's clock for messages that end counts whole seconds
FENCES_MAX: Final = 10_000  # locks whose newest token a node remembers one by one; 60 bytes each in every flush
LOCK_REQUESTS_MAX: Final = 10_000  # under way in one instance of the lock service
LOCKS_LISTED_MAX: Final = 1_000  # in one answer
LOCK_MESSAGES_MAX: Final = 200_000  # leases and waiters that the brokers keep; above, nobody new is taken

# -- messages ----------------------------------------------------------------------------------------------------
BATCH_BYTES_TARGET: Final = 256 * 1024  # a batch is closed once it is this large
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # the embedded broker's max_payload; 256 KiB of \u0001 is 1.5 MiB of JSON
BATCH_OPERATIONS_MAX: Final = 1_024  # operations or changes in one message
SYNC_PAGE_RECORDS_MAX: Final = 512
SYNC_PAGE_SECONDS_TARGET: Final = 0.005  # of a node's time that one page takes while agents wait for it meanwhile
FLUSH_SHARE_MAX: Final = 0.25  # of a processor that bringing records into the tables takes, while agents are busy ...
FLUSH_SHARE_ASIDE_MAX: Final = 0.5  # ... or only the other nodes' agents are, maybe on the same machine
SYNC_SHARE_MAX: Final = 0.35  # of a processor that the pages which a node gives take, while agents ask it for something
TAKING_SHARE_MAX: Final = 0.5  # ... and those that it takes
CATCH_UP_SHARE_MAX: Final = 0.75  # ... and the whole process of a node that takes some, while agents ask others
THREAD_ACTORS_MAX: Final = 1_024  # that coordinated a thread's entries in one partition; a node in one incarnation each
FRAMING_BYTES_MAX: Final = 16 * 1024  # subject, headers and envelope around a payload

# -- a node's memory ---------------------------------------------------------------------------------------------
DIRTY_RECORDS_MAX: Final = 40_000  # acknowledged, not yet in the tables; writers wait above it
DIRTY_BYTES_MAX: Final = 96 * 1024 * 1024  # of them, estimated
CACHE_BYTES_MAX: Final = 48 * 1024 * 1024  # decoded records kept for reading, estimated; after a flush up to 1.5 times
PAGE_CACHE_BYTES_MAX: Final = 16 * 1024 * 1024  # SQLite's, of the connection that writes the tables
READ_CACHE_BYTES_MAX: Final = 6 * 1024 * 1024  # of each connection that reads them; the system caches the file as well
JOURNAL_CACHE_BYTES_MAX: Final = 1024 * 1024  # of the journal's; it is only appended to
READERS_MAX: Final = 2  # connections for queries; a third query at once waits
RANKED_MAX: Final = 32_768  # memories weighed for one search by relevance; some 25 ms
TERMS_CACHED_MAX: Final = 8_192  # hashes of tags, agents, threads and metadata values
CHANGED_PAGES_REMEMBERED_MAX: Final = 8  # repairs under way at once that need not look at the index for every page
CHANGED_IDS_REMEMBERED_MAX: Final = 8_192  # for each of those
OPERATIONS_REMEMBERED_MAX: Final = 30_000  # operation ids a node knows, so that a retry is not applied twice
QUORUM_FAILURES_REMEMBERED_MAX: Final = 10_000  # operations that a node knows to have counted as failed; 2 MiB
STRONG_OPERATIONS_MAX: Final = 20_000  # strong operations that a node has taken and not answered yet
STRONG_REMEMBERED_MAX: Final = 20_000  # memories of a partition that its primary knows to be sealed; others again
WAITING_CHANGES_MAX: Final = 10_000  # changes a node holds back because something before them is missing
REQUESTS_WAITING_MAX: Final = 20_000  # operations a node has taken and not yet answered
STRAYS_AT_ONCE_MAX: Final = 16  # partitions in a message about strays; at most 11 KiB each
QUORUM_READS_MAX: Final = 20_000  # reads of a node that wait for other replicas; a record and an agent's address each
DOCUMENT_TAIL_EDITS_MAX: Final = 64  # edits of a document that are not folded into its state; then half of them are
DOCUMENT_TAIL_BYTES_MAX: Final = 64 * 1024  # of them
OPEN_DOCUMENTS_MAX: Final = 64  # live Yjs documents a node keeps, so that an edit costs what it changes ...
OPEN_DOCUMENTS_BYTES_MAX: Final = 1024 * 1024  # ... of state; alive it takes some twenty times as much
FEEDS_MAX: Final = 10_000  # subscriptions a node serves
HASHED_KEYS_REMEMBERED_MAX: Final = 32_768  # placement keys and own ids; about 6 MiB, hashing anew costs 1 µs

# -- what a node keeps of the past ---------------------------------------------------------------------------------
HISTORY_VERSIONS_MAX: Final = 16  # replaced versions of a memory, the newest ones
HISTORY_SECONDS_MAX: Final = 7 * 86_400  # since a version was replaced
HISTORY_ROWS_MAX: Final = 500_000  # replaced versions; some 250 bytes each where memories are sentences
HISTORY_BYTES_MAX: Final = 256 * 1024 * 1024  # of replaced versions, and as much of receipts
RECEIPTS_MAX: Final = 64  # conflict receipts of a memory, the newest ones
RECEIPT_SECONDS_MAX: Final = 7 * 86_400  # since the conflict was found
RECEIPT_ROWS_MAX: Final = 50_000  # conflict receipts
PAST_SECONDS_MAX: Final = 3.0  # for each node that is asked what was: the others' answers count without it
PAST_PAGE_BYTES_MAX: Final = 512 * 1024  # of either, in one message

# -- a session's memory ------------------------------------------------------------------------------------------
SESSION_OPERATIONS_MAX: Final = 10_000  # operations under way; further calls wait
TOKEN_SECRET_BYTES_MIN: Final = 16  # what signs tokens; a shorter one could be guessed
TOKEN_SECRET_BYTES_MAX: Final = 1024
LEVELS_REMEMBERED_MAX: Final = 10_000  # memories whose tags demand a level, of a cluster with overrides; 3 MiB
THREADS_REMEMBERED_MAX: Final = 1_000  # whose clocks are kept; of the others, the newest own entry is read again
THREAD_ENTRIES_REMEMBERED_MAX: Final = 10_000  # of a Thread, by id for relation(); more where one read had more
FEED_UPDATES_BUFFERED_MAX: Final = 1_000  # updates sent ahead of a subscriber
FEED_UPDATES_REMEMBERED_MAX: Final = 10_000  # memories a subscriber knows again after a change of node; 2 MiB
DOCUMENTS_REMEMBERED_MAX: Final = 64  # documents of which a spine keeps the last known state ...
DOCUMENTS_REMEMBERED_BYTES_MAX: Final = 8 * 1024 * 1024  # ... and their size
CLIENTS_REMEMBERED_MAX: Final = 16  # Yjs client ids of a document that wait to be used again, one a block at a time
DOCUMENT_REBASES_MAX: Final = 5  # how often a block's edit is carried over to a content that was written meanwhile

# -- a command's memory ------------------------------------------------------------------------------------------
IMPORT_IN_FLIGHT_MAX: Final = 512  # memories under way; more of them no longer raise the rate
IMPORT_LINE_BYTES_MAX: Final = (
    4 * 1024 * 1024
)  # the largest memory as JSON, every character of it escaped, is half that

# -- time --------------------------------------------------------------------------------------------------------
CONNECT_SECONDS_MAX: Final = 4.5
OPERATION_SECONDS_MAX: Final = 10.0  # one call, with all its retries
READ_WAIT_SECONDS_MAX: Final = 1.0  # how long a replica lets a read wait for its token before another one is tried
TOMBSTONE_SECONDS_MIN: Final = 3_600  # how long a deletion is remembered at least, for subscriptions that come back
REPLICA_RETIREMENT_SECONDS: Final = 7 * 86_400  # a replica that was silent for this long is no longer waited for
REPLICA_RETIREMENT_SECONDS_MIN: Final = 5.0  # a peer that is quiet for a moment is not gone
REFUSED_BYTES_MAX: Final = 1024 * 1024 * 1024  # of the file with what a retired replica alone had; above, an operator
ANNOUNCE_SECONDS: Final = 1.0  # how often a replica says its vectors (DESIGN rule 8)
PEER_SILENT_SECONDS_MAX: Final = 3.5  # a peer that has not announced for this long counts as away
REPAIR_GRACE_SECONDS: Final = 0.3  # a gap younger than this is probably still on its way
CLOCK_DRIFT_MILLISECONDS_MAX: Final = 500
STRONG_SECONDS_MAX: Final = 1.0  # a strong operation waits so long for a majority before it has written anything ...
STRONG_WRITTEN_SECONDS_MAX: Final = 3.0  # ... and so long once it has: from then on it may have been done
STRONG_OPERATIONS_REMEMBERED_MAX: Final = 64  # of one memory, in it: more than are under way there at once ...
STRONG_OPERATIONS_REMEMBERED_SECONDS: Final = 60.0  # ... and for as long: retries come within a call's timeout

# -- gossip ------------------------------------------------------------------------------------------------------
GOSSIP_SECONDS: Final = 0.5  # how often a node asks one other: below 10 messages a second, sent and taken
GOSSIP_BYTES_MAX: Final = 16 * 1024  # of a message; larger ones are refused
BEAT_MAX: Final = 10**14 - 1  # milliseconds until the year 5138; fourteen digits in a message, or six bytes

# -- a node's HTTP listener --------------------------------------------------------------------------------------
HTTP_HEAD_BYTES_MAX: Final = 16 * 1024  # a request's line and headers; browsers and proxies stay below 8 KiB
HTTP_BODY_BYTES_MAX: Final = 16 * 1024  # read and thrown away: nothing that is served takes a body
HTTP_CONNECTIONS_MAX: Final = 128  # at once; each costs a few KiB and an open file
HTTP_REQUEST_SECONDS_MAX: Final = 10.0  # from a request's first byte, or the connection's beginning, to its last byte
HTTP_IDLE_SECONDS_MAX: Final = 75.0  # between requests; longer than a minute, at which many monitors ask again
HTTP_YIELD_SECONDS_MIN: Final = 1.0  # who waits longer for its client gives way to a newcomer when there are too many
HTTP_LINGER_SECONDS: Final = 1.0  # for a refused client to read why, before its connection is reset

# -- processes that `spine up` starts and keeps ------------------------------------------------------------------
EMBEDDED_NODES_MAX: Final = 32  # on one machine; each is a process with its own caches
FOLDER_LOCK_SECONDS_MAX: Final = 1.0  # a killed predecessor's children need milliseconds to be gone
POLL_SECONDS: Final = 0.005  # between looks at a starting server; it is ready in 10 to 30 ms
BROKER_READY_SECONDS_MAX: Final = 20.0  # it reads its JetStream store first
NODE_READY_SECONDS_MAX: Final = 60.0  # it replays its journal first
NODE_STOP_SECONDS_MAX: Final = 2.5  # then it is killed; the journal has everything acknowledged
BROKER_STOP_SECONDS_MAX: Final = 1.5  # after the nodes; together they stay under 5 s
RESTART_SECONDS_MIN: Final = 0.1  # before the first restart of a process that died, doubling ...
RESTART_SECONDS_MAX: Final = 5.0  # ... up to here
RESTART_CALM_SECONDS: Final = 10.0  # a process that served this long begins again at the minimum
LOG_BYTES_MAX: Final = 4 * 1024 * 1024  # a process's log file; one older file is kept
LOG_LINE_BYTES_MAX: Final = 16 * 1024  # looked at as one line

# -- a node's files ----------------------------------------------------------------------------------------------
WAL_BYTES_TARGET: Final = 32 * 1024 * 1024  # of the tables, before pages go to their place: what is hot goes once
JOURNAL_WAL_BYTES_TARGET: Final = 4 * 1024 * 1024  # of the journal, which has no pages that are written twice
JOURNAL_PRUNE_ROWS_MAX: Final = 64  # in one transaction; an append waits for as long
DATABASE_BUSY_SECONDS_MAX: Final = 5.0  # while another program has a lock on a file of ours

# -- what an operator may configure ------------------------------------------------------------------------------
CONFIG_BYTES_MAX: Final = 1024 * 1024  # a YAML file; a thousand nodes need a tenth of it
PARTITIONS_MAX: Final = 1_024  # each has a vector in every token and announcement; sixteen bits still cut evenly
LEASE_SECONDS_MAX: Final = 86_400.0  # a lock whose holder died blocks the others for as long

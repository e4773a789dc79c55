-- The index of a fleet's crashes: a cache of the bucket, which `crashd-fleet reindex` rebuilds.
--
-- Texts that repeat (hosts, signatures, versions, builds, sets of labels) have numbers; the views at the end show
-- them by name. A row of crash or tally belongs to one host, and only the indexer that holds that host's lock writes it.

CREATE TABLE setting (
    name text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE host (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    host text NOT NULL UNIQUE,
    hostname text NOT NULL DEFAULT '',
    labels jsonb NOT NULL DEFAULT '{}',
    crashd_version text NOT NULL DEFAULT '',
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    quarantined bigint NOT NULL DEFAULT 0
);
COMMENT ON COLUMN host.host IS 'the prefix under which the host writes: its identity';
COMMENT ON COLUMN host.hostname IS 'what the host calls itself';
CREATE INDEX host_hostname ON host (hostname);

CREATE TABLE labelset (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    labels jsonb NOT NULL UNIQUE
);
CREATE TABLE version (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    version text NOT NULL UNIQUE,
    first_seen timestamptz
);
COMMENT ON TABLE version IS 'versions of what the hosts run: the label "version", or the release of a kernel that crashed';
CREATE TABLE build (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    build text NOT NULL UNIQUE
);
COMMENT ON TABLE build IS 'build-ids of executables';

CREATE TABLE signature (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    signature text NOT NULL UNIQUE,
    kind text NOT NULL DEFAULT '',
    title text NOT NULL DEFAULT '',
    exe text,
    unit text,
    newest text,
    first_seen timestamptz,
    last_seen timestamptz,
    count bigint NOT NULL DEFAULT 0,
    cores bigint NOT NULL DEFAULT 0,
    hosts integer NOT NULL DEFAULT 0,
    versions integer NOT NULL DEFAULT 0
);
COMMENT ON COLUMN signature.newest IS 'id of its newest crash';
COMMENT ON COLUMN signature.count IS 'crashes ever indexed, also those whose days were dropped since';
COMMENT ON COLUMN signature.cores IS 'crashes whose core is in the bucket';
COMMENT ON COLUMN signature.hosts IS 'hosts that have had it, as of the last upkeep';
CREATE INDEX signature_first_seen ON signature (first_seen);

CREATE TABLE crash (
    id text NOT NULL,
    host integer NOT NULL,
    day date NOT NULL,
    time timestamptz NOT NULL,
    revision bigint NOT NULL,
    short text NOT NULL,
    kind text NOT NULL,
    state text NOT NULL,
    disposition text NOT NULL,
    hostname text NOT NULL,
    signature integer NOT NULL,
    version integer NOT NULL,
    build integer NOT NULL,
    labels integer NOT NULL,
    pid bigint,
    uid bigint,
    gid bigint,
    signal integer,
    comm text NOT NULL,
    exe text NOT NULL,
    unit text,
    user_unit text,
    slice text,
    container_id text,
    title text NOT NULL,
    what text NOT NULL,
    pinned boolean NOT NULL,
    stored_bytes bigint NOT NULL,
    core_key text,
    log_key text,
    object text NOT NULL,
    seen timestamptz NOT NULL DEFAULT now(),
    doc jsonb NOT NULL,
    PRIMARY KEY (id, host, day)
) PARTITION BY RANGE (day);
COMMENT ON COLUMN crash.day IS 'the day in the id: a later revision may correct the time, but never the id';
COMMENT ON COLUMN crash.what IS 'signal, or kind of kernel panic';
COMMENT ON COLUMN crash.core_key IS 'key of the core in the bucket';
COMMENT ON COLUMN crash.object IS 'key of the object that the record came from';
COMMENT ON COLUMN crash.seen IS 'when the crash was first indexed';
CREATE INDEX crash_time ON crash (time DESC, id DESC);
CREATE INDEX crash_short ON crash (short);
CREATE INDEX crash_host ON crash (host, time DESC, id DESC);
CREATE INDEX crash_signature ON crash (signature, time DESC, id DESC);
CREATE INDEX crash_unit ON crash (unit, time DESC, id DESC) WHERE unit IS NOT NULL;
CREATE INDEX crash_user_unit ON crash (user_unit, time DESC, id DESC) WHERE user_unit IS NOT NULL;
CREATE INDEX crash_container_id ON crash (container_id, time DESC, id DESC) WHERE container_id IS NOT NULL;
CREATE INDEX crash_comm ON crash (comm, time DESC, id DESC);
CREATE INDEX crash_exe ON crash (exe, time DESC, id DESC);
CREATE INDEX crash_seen ON crash USING brin (seen) WITH (pages_per_range = 16);

CREATE TABLE tally (
    day date NOT NULL,
    signature integer NOT NULL,
    host integer NOT NULL,
    version integer NOT NULL,
    build integer NOT NULL,
    labels integer NOT NULL,
    kernel boolean NOT NULL,
    crashes integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    PRIMARY KEY (day, signature, host, version, build, labels, kernel)
) PARTITION BY RANGE (day);
COMMENT ON TABLE tally IS 'crashes counted by all that `crashctl --fleet top` groups by; kept by the indexer';
CREATE INDEX tally_host ON tally (host, day);
CREATE INDEX tally_version ON tally (version, signature, host);

-- Which versions a host has run, and since when: rates are against these hosts.
CREATE TABLE host_version (
    host integer NOT NULL,
    version integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    PRIMARY KEY (version, host)
);
-- Which versions a signature was seen with; outlives the days that are dropped.
CREATE TABLE signature_version (
    signature integer NOT NULL,
    version integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    PRIMARY KEY (signature, version)
);

CREATE TABLE cursor (
    host text PRIMARY KEY,
    shard smallint NOT NULL,
    objects integer,
    mark timestamptz,
    late_mark timestamptz,
    late_looked timestamptz,
    recent text[] NOT NULL DEFAULT '{}',
    due timestamptz NOT NULL DEFAULT now(),
    idle_seconds real NOT NULL DEFAULT 0
);
COMMENT ON TABLE cursor IS 'how far the objects of each host are indexed; times are the object store''s';
COMMENT ON COLUMN cursor.objects IS 'objects at the last listing of all';
COMMENT ON COLUMN cursor.mark IS 'of the objects indexed in time, the newest';
COMMENT ON COLUMN cursor.late_mark IS 'the newest object at the last listing of all';
COMMENT ON COLUMN cursor.recent IS 'objects that are indexed and near a mark';
COMMENT ON COLUMN cursor.due IS 'when to list again';
CREATE INDEX cursor_due ON cursor (shard, due);

CREATE TABLE quarantine (
    host text NOT NULL,
    object text NOT NULL,
    line integer NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    excerpt bytea NOT NULL,
    seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (object, line)
);
COMMENT ON TABLE quarantine IS 'records that were refused; line 0 is the whole object';
CREATE INDEX quarantine_host ON quarantine (host, seen);
CREATE INDEX quarantine_seen ON quarantine (seen);

-- Deleted crashes: no revision of them is indexed again.
CREATE TABLE tombstone (
    id text NOT NULL,
    host integer NOT NULL,
    day date NOT NULL,
    reason text NOT NULL,
    made timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, host)
);

-- What operators ask of hosts, published as policy/v1/want/<host> until the host has obeyed.
CREATE TABLE request (
    host text NOT NULL,
    id text NOT NULL,
    what text NOT NULL CHECK (what IN ('core', 'delete')),
    day date NOT NULL,
    made timestamptz NOT NULL DEFAULT now(),
    made_by text NOT NULL DEFAULT session_user,
    done timestamptz,
    PRIMARY KEY (host, id, what)
);
CREATE INDEX request_open ON request (host) WHERE done IS NULL;
CREATE TABLE published (
    key text PRIMARY KEY,
    digest text NOT NULL
);
COMMENT ON TABLE published IS 'policies in the bucket, so that only changed ones are written';

CREATE TABLE total (
    result text PRIMARY KEY,
    records bigint NOT NULL
);
COMMENT ON TABLE total IS 'records by result, of all indexers together';

CREATE VIEW crashes AS
    SELECT c.id, h.host, c.hostname, c.time, c.kind, c.state, c.disposition, s.signature, v.version, b.build AS build_id,
        l.labels, c.pid, c.uid, c.gid, c.signal, c.what, c.comm, c.exe, c.unit, c.container_id, c.title, c.pinned,
        c.stored_bytes, c.core_key, c.object, c.seen, c.day, c.doc
    FROM crash c
    JOIN host h ON h.number = c.host
    LEFT JOIN signature s ON s.number = c.signature
    LEFT JOIN version v ON v.number = c.version
    LEFT JOIN build b ON b.number = c.build
    LEFT JOIN labelset l ON l.number = c.labels;
COMMENT ON VIEW crashes IS 'crashes by name, for people and dashboards; a condition on day makes it fast';

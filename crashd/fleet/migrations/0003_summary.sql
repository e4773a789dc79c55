-- Counts of whole days by signature and version, with sets of hosts: `top` over a week reads some thousand rows of them
-- in place of a tally for nearly each crash. The indexer moves rows from unsummed to summary every few seconds.

CREATE TABLE summary (
    day date NOT NULL,
    signature integer NOT NULL,
    version integer NOT NULL,
    kernel boolean NOT NULL,
    crashes integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    stale boolean NOT NULL,
    few integer[] NOT NULL,
    many bit varying,
    PRIMARY KEY (day, signature, version, kernel)
) WITH (fillfactor = 70);
COMMENT ON COLUMN summary.signature IS 'number of a signature; -1: any, or none';
COMMENT ON COLUMN summary.stale IS 'a host may have it no more: the set of hosts is to be made again';
COMMENT ON COLUMN summary.few IS 'numbers of the hosts that have had it, unless they are many';
COMMENT ON COLUMN summary.many IS 'bit N: the host with number N has had it';

CREATE TABLE unsummed (
    day date NOT NULL,
    signature integer NOT NULL,
    version integer NOT NULL,
    kernel boolean NOT NULL,
    host integer NOT NULL,
    crashes integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
COMMENT ON TABLE unsummed IS 'what was counted since the last summary; crashes are negative where some are gone';

GRANT SELECT ON summary, unsummed TO crashd_index, crashd_read;
GRANT INSERT, UPDATE, DELETE ON summary, unsummed TO crashd_index;

INSERT INTO unsummed
    SELECT day, signature, version, kernel, host, crashes, first, last FROM tally WHERE crashes <> 0;
-- which signatures have enough cores
CREATE INDEX crash_core ON crash (signature, host) WHERE core_key IS NOT NULL;
-- it served what is asked of summaries now
DROP INDEX tally_version;

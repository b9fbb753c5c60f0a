-- What the workers write to, and what the check reads.

CREATE TABLE shop (
    id       bigint PRIMARY KEY,
    radius_m integer NOT NULL,
    closed   boolean NOT NULL,
    changes  integer NOT NULL DEFAULT 0
) WITH (fillfactor = 60);

-- How far each partition of the request topic has been applied. It moves in the
-- transaction that applies, so that a request is applied once, and its row is
-- the only lock that a worker takes: no two live workers want the same one.
CREATE TABLE progress (
    partition   integer PRIMARY KEY,
    next_offset bigint NOT NULL
);

-- Every request and what was done with it, in the order of application.
CREATE TABLE change (
    partition  integer NOT NULL,
    log_offset bigint NOT NULL,
    shop       bigint NOT NULL,
    trigger    integer NOT NULL,
    status     integer NOT NULL, -- gRPC code
    previous_m integer,
    radius_m   integer,
    nth        integer,
    applied    bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (partition, log_offset)
);

-- Only for the check: the request topic as it is, and what the callers were told.
CREATE UNLOGGED TABLE record (
    partition  integer NOT NULL,
    log_offset bigint NOT NULL,
    key        text NOT NULL,
    shop       bigint NOT NULL,
    trigger    integer NOT NULL
);

CREATE UNLOGGED TABLE call (
    shop       bigint NOT NULL,
    trigger    integer NOT NULL,
    chained    boolean NOT NULL,
    gateway    integer NOT NULL,
    sent_us    bigint NOT NULL,
    ended_us   bigint NOT NULL,
    code       integer NOT NULL, -- gRPC code
    outcome    text NOT NULL,
    partition  integer,
    log_offset bigint,
    previous_m integer,
    radius_m   integer,
    nth        integer
);

-- The naive way has a table of its own.
CREATE TABLE naive_shop (
    id       bigint PRIMARY KEY,
    radius_m integer NOT NULL
) WITH (fillfactor = 60);

//! The thread that writes lines to a file, or to standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::Error;
use crate::metrics::Counter;

/// How often it is looked whether the file is still where it was.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is told that lines are lost.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What the thread is told.
pub(super) enum Order {
    /// A line, with its end.
    Write(String),
    /// Say so when all before it is written.
    Flush(SyncSender<()>),
}

pub(super) struct Writer {
    path: Option<PathBuf>,
    out: BufWriter<Box<dyn Write + Send>>,
    /// Device and inode of the file.
    identity: Option<(u64, u64)>,
    looked: Instant,
    dropped: Counter,
    told: Option<(Instant, u64)>,
    /// Lines in `out` that are not written yet.
    buffered: u64,
}

impl Writer {
    pub(super) fn open(path: Option<PathBuf>, dropped: Counter) -> Result<Self, Error> {
        let (out, identity) = match &path {
            None => (Box::new(io::stderr()) as Box<dyn Write + Send>, None),
            Some(path) => {
                let file = append_to(path).map_err(|source| Error::File { path: path.clone(), source })?;
                let identity = file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
                (Box::new(file) as _, identity)
            }
        };
        let out = BufWriter::with_capacity(64 * 1_024, out);
        Ok(Self { path, out, identity, looked: Instant::now(), dropped, told: None, buffered: 0 })
    }

    /// Writes until nobody can send any more.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            self.follow_the_path();
            self.obey(order);
            // What has come meanwhile goes in one write.
            while let Ok(order) = orders.try_recv() {
                self.obey(order);
            }
            self.flush();
            self.tell_of_the_dropped();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Write(line) => {
                self.buffered += 1;
                if self.out.buffer().len() + line.len() > self.out.capacity() {
                    self.flush();
                    self.buffered = 1;
                }
                // There is room for it, or it is larger than any line can be.
                if self.out.write_all(line.as_bytes()).is_err() {
                    self.lose();
                }
            }
            Order::Flush(done) => {
                self.flush();
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.out.flush() {
            if self.may_tell() {
                tracing::error!(%error, "the access log cannot be written");
            }
            self.lose();
        }
        self.buffered = 0;
    }

    /// What could not be written is not tried again: the disk is full, or the
    /// reader of standard error has gone.
    fn lose(&mut self) {
        self.dropped.inc_by(self.buffered);
        self.buffered = 0;
        let fresh = match &self.path {
            None => Box::new(io::stderr()) as Box<dyn Write + Send>,
            Some(path) => match append_to(path) {
                Ok(file) => Box::new(file) as _,
                Err(_) => Box::new(Nowhere) as _,
            },
        };
        // The old one's buffer is thrown away: it has been counted.
        let old = std::mem::replace(&mut self.out, BufWriter::with_capacity(64 * 1_024, fresh));
        drop(old.into_parts());
        self.identity = None;
    }

    /// A file that was moved away, as by logrotate, is made anew.
    fn follow_the_path(&mut self) {
        let Some(path) = &self.path else { return };
        if self.looked.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let now = std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if now.is_some() && now == self.identity {
            return;
        }
        match Self::open(self.path.clone(), self.dropped.clone()) {
            Ok(fresh) => {
                self.out = fresh.out;
                self.identity = fresh.identity;
            }
            Err(error) if self.may_tell() => tracing::error!(%error, "the access log goes on where it was"),
            Err(_) => {}
        }
    }

    fn may_tell(&mut self) -> bool {
        let may = self.told.is_none_or(|(when, _)| when.elapsed() >= TELL_INTERVAL);
        if may {
            self.told = Some((Instant::now(), self.dropped.get()));
        }
        may
    }

    fn tell_of_the_dropped(&mut self) {
        let (all, before) = (self.dropped.get(), self.told.map_or(0, |(_, before)| before));
        if all > before && self.may_tell() {
            tracing::warn!(
                lines = all - before,
                "lines of the access log were dropped: more came than could be written"
            );
        }
    }
}

/// Stands in for a file that can't be opened, until it can.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

//! Load over many connections from one thread, for it shares the cores with what it measures: of a thread for each connection
//! every one would have to be woken for its answer.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    client::{Answer, BUFFER_BYTES},
    rounds::Round,
};

/// Connections of an open loop: more than there are requests in flight at any rate that a server can keep up with.
const N_OPEN: usize = 32;

/// As many connections as `concurrency`, each with its next request as soon as it has the answer to the last.
pub(crate) fn http_loop(
    address: SocketAddr,
    requests: &[Vec<u8>],
    concurrency: usize,
    duration: Duration,
) -> io::Result<Round> {
    let start = Instant::now();
    drive(address, requests, concurrency, |_| if start.elapsed() < duration { Turn::Now } else { Turn::Never })
}

/// As [`http_loop`], but for `n_requests`.
pub(crate) fn http_requests(
    address: SocketAddr,
    requests: &[Vec<u8>],
    concurrency: usize,
    n_requests: usize,
) -> io::Result<Round> {
    drive(address, requests, concurrency, |item| if item < n_requests { Turn::Now } else { Turn::Never })
}

/// Sends requests at a fixed rate, whether or not earlier ones are answered.
///
/// They are timed from when they are due: a server that falls behind cannot hide it.
pub(crate) fn open_loop(
    address: SocketAddr,
    requests: &[Vec<u8>],
    per_second: f64,
    duration: Duration,
) -> io::Result<Round> {
    let start = Instant::now();
    let n_requests = (per_second * duration.as_secs_f64()) as usize;
    drive(address, requests, N_OPEN, |item| match item < n_requests {
        true => Turn::At(start + Duration::from_secs_f64(item as f64 / per_second)),
        false => Turn::Never,
    })
}

/// When an item is to be sent.
enum Turn {
    /// As soon as there is a connection for it.
    Now,
    At(Instant),
    /// Neither this item nor a later one.
    Never,
}

fn drive(
    address: SocketAddr,
    requests: &[Vec<u8>],
    n_connections: usize,
    turn: impl Fn(usize) -> Turn,
) -> io::Result<Round> {
    let connections = (0..n_connections).map(|_| Connection::open(address));
    let mut idle = connections.collect::<io::Result<Vec<_>>>()?;
    let (mut busy, mut latencies_ms, mut item) = (Vec::new(), Vec::new(), 0);
    let start = Instant::now();
    loop {
        let mut wait = None;
        while let Some(connection) = idle.pop() {
            let now = Instant::now();
            let due = match turn(item) {
                Turn::Now => Some(now),
                Turn::At(due) if due <= now => Some(due),
                Turn::At(due) => {
                    wait = Some(due - now);
                    None
                }
                Turn::Never => None,
            };
            let Some(due) = due else {
                idle.push(connection);
                break;
            };
            busy.push(connection.with(&requests[item % requests.len()], due)?);
            item += 1;
        }
        if busy.is_empty() && wait.is_none() {
            return Ok(Round::new(latencies_ms, start.elapsed()));
        }
        let ready = ready(&busy, wait)?;
        for index in (0..busy.len()).rev().filter(|&index| ready[index]) {
            if busy[index].go_on()? {
                let asked = busy.swap_remove(index);
                latencies_ms.push(asked.due.elapsed().as_secs_f64() * 1e3);
                idle.push(asked.connection);
            }
        }
    }
}

/// Which connections can go on, as soon as there is one, or none after `wait`.
fn ready(busy: &[Asked<'_>], wait: Option<Duration>) -> io::Result<Vec<bool>> {
    let of = |asked: &Asked<'_>| if asked.unsent.is_empty() { PollFlags::IN } else { PollFlags::OUT };
    let mut polled: Vec<_> = busy.iter().map(|asked| PollFd::new(&asked.connection.stream, of(asked))).collect();
    let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
    match poll(&mut polled, wait.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(error) => Err(error.into()),
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A connection with a request under way.
struct Asked<'a> {
    connection: Connection,
    due: Instant,
    unsent: &'a [u8],
    n_read: usize,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends as much of a request as goes at once.
    fn with(self, request: &[u8], due: Instant) -> io::Result<Asked<'_>> {
        let mut asked = Asked { connection: self, due, unsent: request, n_read: 0 };
        asked.write()?;
        Ok(asked)
    }
}

impl Asked<'_> {
    fn write(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.connection.stream.write(self.unsent) {
                Ok(n) => self.unsent = &self.unsent[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes or reads what can be; whether the answer is there, which must be a success.
    fn go_on(&mut self) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            self.write()?;
            return Ok(false);
        }
        let Connection { stream, buffer } = &mut self.connection;
        if self.n_read == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
        }
        match stream.read(&mut buffer[self.n_read..])? {
            0 => return Err(io::Error::other("the server closed the connection")),
            n => self.n_read += n,
        }
        Answer::of(&buffer[..self.n_read])?.map_or(Ok(false), |answer| answer.success().map(|_| true))
    }
}

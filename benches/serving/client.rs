//! A client of few instructions, for it shares the cores with what it measures: one connection, one request at a time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Of what an answer is read into, to begin with.
pub(crate) const BUFFER_BYTES: usize = 1 << 16;

pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub(crate) struct Answer<'a> {
    pub(crate) status: usize,
    head: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends a request and gives back the body of the answer. Whatever is no success is an error.
    pub(crate) fn send(&mut self, request: &[u8]) -> io::Result<&[u8]> {
        self.ask(request)?.success()
    }

    /// Sends a request and gives back the answer, whatever it is.
    pub(crate) fn ask(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request)?;
        let mut length = self.read(0)?;
        while Answer::of(&self.buffer[..length])?.is_none() {
            length += self.read(length)?;
        }
        Answer::of(&self.buffer[..length])?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn read(&mut self, length: usize) -> io::Result<usize> {
        if length == self.buffer.len() {
            self.buffer.resize(length * 2, 0);
        }
        match self.stream.read(&mut self.buffer[length..])? {
            0 => Err(io::Error::other("the server closed the connection")),
            n => Ok(n),
        }
    }
}

impl<'a> Answer<'a> {
    /// The answer at the start of what has been read, once it is there as a whole.
    pub(crate) fn of(read: &'a [u8]) -> io::Result<Option<Self>> {
        let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let (head, rest) = read.split_at(end + 4);
        let status = head.get(9..12).and_then(number).ok_or_else(|| io::Error::other("an answer without a status"))?;
        let length = header(head, b"content-length:").and_then(number);
        let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        Ok(rest.get(..length).map(|body| Self { status, head, body }))
    }

    /// Its body, if it is a success.
    pub(crate) fn success(self) -> io::Result<&'a [u8]> {
        match self.status {
            200..300 => Ok(self.body),
            _ => Err(io::Error::other(String::from_utf8_lossy(&[self.head, self.body].concat()).into_owned())),
        }
    }

    /// How long it asks to wait before the next request.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        header(self.head, b"retry-after:").and_then(number).map(|seconds| Duration::from_secs(seconds as u64))
    }
}

/// The value of the header of that name, which ends in a colon.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let is_it = |line: &&[u8]| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    head.split(|byte| *byte == b'\n').find(is_it).map(|line| &line[name.len()..])
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

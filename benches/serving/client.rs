//! A client of few instructions, for it shares the cores with what it measures: one connection, one request at a time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

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
        Ok(Self { stream, buffer: vec![0; 1 << 16] })
    }

    /// Sends a request and gives back the body of the answer. Whatever is no success is an error.
    pub(crate) fn send(&mut self, request: &[u8]) -> io::Result<&[u8]> {
        match self.ask(request)? {
            Answer { status: 200..300, body, .. } => Ok(body),
            Answer { head, body, .. } => Err(io::Error::other(String::from_utf8_lossy(&[head, body].concat()))),
        }
    }

    /// Sends a request and gives back the answer, whatever it is.
    pub(crate) fn ask(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request)?;
        let mut length = 0;
        let body_start = loop {
            length += self.read(length)?;
            if let Some(end) = self.buffer[..length].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = &self.buffer[..body_start];
        let status = head.get(9..12).and_then(number).ok_or_else(|| io::Error::other("an answer without a status"))?;
        let body_length = header(head, b"content-length:").and_then(number);
        let end = body_start + body_length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        while length < end {
            length += self.read(length)?;
        }
        let (head, body) = self.buffer[..end].split_at(body_start);
        Ok(Answer { status, head, body })
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

impl Answer<'_> {
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

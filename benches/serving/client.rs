//! A client of few instructions, for it shares the cores with what it measures: one connection, one request at a time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
};

pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 1 << 16] })
    }

    /// Sends a request and gives back the body of the answer. Whatever is no success is an error.
    pub(crate) fn send(&mut self, request: &[u8]) -> io::Result<&[u8]> {
        self.stream.write_all(request)?;
        let mut length = 0;
        let body_start = loop {
            length += self.read(length)?;
            if let Some(end) = self.buffer[..length].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = &self.buffer[..body_start];
        let is_success = head.starts_with(b"HTTP/1.1 2");
        let end = body_start + content_length(head).ok_or_else(|| io::Error::other("an answer without a length"))?;
        while length < end {
            length += self.read(length)?;
        }
        match is_success {
            true => Ok(&self.buffer[body_start..end]),
            false => Err(io::Error::other(String::from_utf8_lossy(&self.buffer[..end]).into_owned())),
        }
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

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let is_it = |line: &&[u8]| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME));
    let line = head.split(|byte| *byte == b'\n').find(is_it)?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

//! The header of the NumPy array format, read strictly: a dictionary of three literals, and nothing that is evaluated.

use std::io::Read;

use super::{
    FeatureSetError,
    elements::{Class, Element, Layout, damaged, fill},
};

/// What NumPy writes is below 200 bytes; more than this is no header.
const MAX_HEADER_BYTES: usize = 1 << 16;
const MAX_DIMENSIONS: usize = 32;

/// A problem, and the byte of the array file where it is.
type Problem = (&'static str, usize);

/// Reads the header of `member`; says how many bytes it took.
///
/// # Reference
/// NumPy Enhancement Proposal 1, versions 1.0, 2.0 and 3.0.
pub(super) fn read(source: &mut impl Read, member: &'static str) -> Result<(Layout, u64), FeatureSetError> {
    let header_error = |(problem, byte): Problem| FeatureSetError::NpyHeader { member, problem, byte };
    let mut take = |n_bytes: usize, start: usize| {
        let mut bytes = vec![0; n_bytes];
        let found = fill(source, &mut bytes).map_err(|error| damaged(member, &error))?;
        if found < n_bytes {
            return Err(header_error(("the array ends", start + found)));
        }
        Ok(bytes)
    };
    let prefix = take(8, 0)?;
    if !prefix.starts_with(b"\x93NUMPY") {
        return Err(header_error(("no magic string", 0)));
    }
    let length_bytes = match prefix[6..] {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        _ => return Err(header_error(("an unknown version", 6))),
    };
    let length = take(length_bytes, 8)?.iter().rev().fold(0, |length, &byte| length << 8 | usize::from(byte));
    if length > MAX_HEADER_BYTES {
        return Err(header_error(("a header longer than 65536 bytes is declared", 8)));
    }
    let start = 8 + length_bytes;
    let text = take(length, start)?;
    let mut parser = Parser { text: &text, position: 0 };
    let header = parser.dictionary().map_err(|(problem, byte)| header_error((problem, start + byte)))?;
    let element = element_of(&header.descr);
    let layout = Layout {
        member,
        element,
        type_name: header.descr.chars().take(32).collect(),
        fortran_order: header.fortran_order,
        shape: header.shape,
    };
    Ok((layout, (start + length) as u64))
}

fn element_of(descr: &str) -> Option<Element> {
    let mut chars = descr.chars();
    let order = chars.next()?;
    let (class, size) = match chars.as_str() {
        "f2" => (Class::Float, 2),
        "f4" => (Class::Float, 4),
        "f8" => (Class::Float, 8),
        "i1" => (Class::Signed, 1),
        "i2" => (Class::Signed, 2),
        "i4" => (Class::Signed, 4),
        "i8" => (Class::Signed, 8),
        "u1" => (Class::Unsigned, 1),
        "u2" => (Class::Unsigned, 2),
        "u4" => (Class::Unsigned, 4),
        "u8" => (Class::Unsigned, 8),
        _ => return None,
    };
    let big_endian = match order {
        '<' => false,
        '>' => true,
        // One byte has no order.
        '|' if size == 1 => false,
        _ => return None,
    };
    Some(Element { class, size, big_endian })
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

struct Parser<'a> {
    text: &'a [u8],
    position: usize,
}

impl Parser<'_> {
    fn problem<T>(&self, problem: &'static str) -> Result<T, Problem> {
        Err((problem, self.position))
    }

    fn skip_space(&mut self) {
        while matches!(self.text.get(self.position), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.position += 1;
        }
    }

    /// Takes `token` if it is next, after space.
    fn accept(&mut self, token: &[u8]) -> bool {
        self.skip_space();
        let found = self.text[self.position..].starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn expect(&mut self, token: &[u8], problem: &'static str) -> Result<(), Problem> {
        if self.accept(token) { Ok(()) } else { self.problem(problem) }
    }

    fn dictionary(&mut self) -> Result<Header, Problem> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.expect(b"{", "no dictionary")?;
        while !self.accept(b"}") {
            let key_at = self.position;
            let key = self.string()?;
            self.expect(b":", "no colon after a key")?;
            let repeated = match key.as_str() {
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                _ => return Err(("an unknown key", key_at)),
            };
            if repeated {
                return Err(("a key for the second time", key_at));
            }
            if !self.accept(b",") {
                self.expect(b"}", "no comma between keys")?;
                break;
            }
        }
        self.skip_space();
        if self.position < self.text.len() {
            return self.problem("something after the dictionary");
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => self.problem("a key is missing"),
        }
    }

    fn string(&mut self) -> Result<String, Problem> {
        let quote = if self.accept(b"'") {
            b'\''
        } else if self.accept(b"\"") {
            b'"'
        } else if self.accept(b"[") {
            return self.problem("a list, as of a structured type,");
        } else {
            return self.problem("no string");
        };
        let start = self.position;
        let is_end = |&byte: &u8| byte == quote || byte == b'\\' || !(b' '..=b'~').contains(&byte);
        let Some(length) = self.text[start..].iter().position(is_end) else {
            return self.problem("no end of a string");
        };
        self.position = start + length;
        if self.text[self.position] != quote {
            return self.problem("an escaped or unprintable character");
        }
        let text = self.text[start..self.position].iter().map(|&byte| char::from(byte)).collect();
        self.position += 1;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, Problem> {
        if self.accept(b"True") {
            Ok(true)
        } else if self.accept(b"False") {
            Ok(false)
        } else {
            self.problem("neither True nor False")
        }
    }

    fn shape(&mut self) -> Result<Vec<u64>, Problem> {
        let mut shape = Vec::new();
        self.expect(b"(", "no tuple")?;
        loop {
            if self.accept(b")") {
                return Ok(shape);
            }
            if shape.len() == MAX_DIMENSIONS {
                return self.problem("a dimension too many");
            }
            shape.push(self.integer()?);
            if !self.accept(b",") {
                self.expect(b")", "no end of a tuple")?;
                // (3) is a number in brackets, not a tuple.
                return if shape.len() == 1 { self.problem("no comma after the only dimension") } else { Ok(shape) };
            }
        }
    }

    fn integer(&mut self) -> Result<u64, Problem> {
        self.skip_space();
        let digits = self.text[self.position..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return self.problem("no whole number");
        }
        let number = self.text[self.position..self.position + digits]
            .iter()
            .try_fold(0u64, |number, &digit| number.checked_mul(10)?.checked_add((digit - b'0').into()));
        let Some(number) = number else { return self.problem("a number beyond 64 bits") };
        self.position += digits;
        Ok(number)
    }
}

//! Reading a source text token by token.

use std::ops::Range;

use super::{ParseError, is_plain, is_plain_byte};

/// A position in a source. Every function that reads a token skips white space and comments first.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'s> {
    source: &'s str,
    /// Where reading goes on.
    at: usize,
    /// The end of the last token.
    end: usize,
}

impl<'s> Cursor<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Cursor {
            source,
            at: 0,
            end: 0,
        }
    }

    /// The byte position of the next token.
    pub(super) fn start(&mut self) -> usize {
        self.skip();
        self.at
    }

    /// The byte position after the last token.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The next character of the next token.
    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    /// Reads `token` if it comes next.
    pub(super) fn eat(&mut self, token: char) -> bool {
        let found = self.peek() == Some(token);
        if found {
            self.advance(token.len_utf8());
        }
        found
    }

    /// Reads `token`.
    pub(super) fn expect(&mut self, token: char) -> Result<(), ParseError> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{token}`")))
        }
    }

    /// Reads the word `keyword` if it comes next.
    pub(super) fn eat_word(&mut self, keyword: &str) -> bool {
        self.skip();
        let found = self.plain() == keyword;
        if found {
            self.advance(keyword.len());
        }
        found
    }

    /// Reads the word `keyword`.
    pub(super) fn expect_word(&mut self, keyword: &str) -> Result<(), ParseError> {
        if self.eat_word(keyword) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{keyword}`")))
        }
    }

    /// Reads a word of letters, digits and underscores; `what` says which.
    pub(super) fn word(&mut self, what: &str) -> Result<&'s str, ParseError> {
        self.skip();
        let word = self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if word.is_empty() {
            return Err(self.unexpected(what));
        }
        self.advance(word.len());
        Ok(word)
    }

    /// Reads a name: a plain word, or a quoted one.
    pub(super) fn name(&mut self, what: &str) -> Result<String, ParseError> {
        self.skip();
        if self.rest().starts_with('"') {
            return self.string(what);
        }
        let word = self.plain();
        if !is_plain(word) {
            return Err(self.unexpected(what));
        }
        self.advance(word.len());
        Ok(word.to_owned())
    }

    /// Reads a name of a value, without its `%`.
    pub(super) fn value(&mut self) -> Result<(&'s str, Range<usize>), ParseError> {
        let start = self.start();
        if !self.rest().starts_with('%') {
            return Err(self.unexpected("a value such as `%0`"));
        }
        let rest = &self.source[start + 1..];
        let length = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
            .count();
        if length == 0 {
            return Err(self.unexpected("a value such as `%0`"));
        }
        self.advance(1 + length);
        Ok((&rest[..length], start..self.at))
    }

    /// Reads a decimal number that fits `T`.
    pub(super) fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, ParseError> {
        let start = self.start();
        let digits = self.take_while(|byte| byte.is_ascii_digit());
        if digits.is_empty() {
            return Err(self.unexpected(what));
        }
        self.advance(digits.len());
        digits
            .parse()
            .map_err(|_| self.error(start..self.at, format!("{what} is too large")))
    }

    /// Reads a quoted string.
    pub(super) fn string(&mut self, what: &str) -> Result<String, ParseError> {
        let start = self.start();
        if !self.rest().starts_with('"') {
            return Err(self.unexpected(what));
        }
        match self.json()? {
            serde_json::Value::String(text) => Ok(text),
            _ => Err(self.error(start..self.at, format!("expected {what}"))),
        }
    }

    /// Reads a JSON value.
    pub(super) fn json(&mut self) -> Result<serde_json::Value, ParseError> {
        let start = self.start();
        let mut stream = serde_json::Deserializer::from_str(self.rest()).into_iter();
        match stream.next() {
            Some(Ok(value)) => {
                self.advance(stream.byte_offset());
                Ok(value)
            }
            Some(Err(error)) if error.is_eof() => {
                Err(self.error(start..start, "the text ends inside a value".to_owned()))
            }
            Some(Err(error)) => {
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default();
                Err(self.error(start..start, format!("not a JSON value: {reason}")))
            }
            None => Err(self.unexpected("a value")),
        }
    }

    /// Whether the next token stands on another line than the last, or closes the graph.
    pub(super) fn at_line_end(&mut self) -> bool {
        let from = self.end;
        let next = self.peek();
        matches!(next, None | Some('}')) || self.source[from..self.at].contains('\n')
    }

    /// An error about the next token.
    pub(super) fn unexpected(&mut self, wanted: &str) -> ParseError {
        let start = self.start();
        let word = self.plain().len();
        let length = if word > 0 {
            word
        } else {
            self.rest().chars().next().map_or(0, char::len_utf8)
        };
        let found = match &self.rest()[..length] {
            "" => "the end of the text".to_owned(),
            token if token.contains(char::is_control) => format!("`{}`", token.escape_debug()),
            token => format!("`{token}`"),
        };
        self.error(
            start..start + length,
            format!("expected {wanted}, found {found}"),
        )
    }

    /// An error about some bytes.
    pub(super) fn error(&self, span: Range<usize>, message: String) -> ParseError {
        ParseError::new(self.source, span, message)
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.end = self.at;
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn plain(&self) -> &'s str {
        self.take_while(is_plain_byte)
    }

    /// The longest run of accepted ASCII bytes from here.
    fn take_while(&self, accept: impl Fn(u8) -> bool) -> &'s str {
        let rest = self.rest();
        let length = rest
            .bytes()
            .take_while(|&byte| byte.is_ascii() && accept(byte))
            .count();
        &rest[..length]
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }
}

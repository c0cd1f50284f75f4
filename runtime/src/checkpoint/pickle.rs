//! A reader for the pickles inside PyTorch checkpoints.
//!
//! It builds a tree of plain data and runs nothing: a global is accepted only if it is in [`Global`], and calls are
//! kept as data for the caller to interpret. Memory is bounded by a small multiple of the pickle's length, which is
//! at most [`MAX_PICKLE`].

use crate::error::quote;
use crate::tensors::Dtype;
use std::collections::HashMap;

/// The longest pickle that is read, in bytes; an LXMERT checkpoint's is 70 kB.
pub(super) const MAX_PICKLE: u64 = 8 << 20;

/// Index of a node in [`Pickle::nodes`].
pub(super) type Ref = u32;

/// The names a checkpoint may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor(storage, offset, size, stride)`
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`
    RebuildTensorV2,
    /// `torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`
    RebuildParameter,
    /// `torch.FloatStorage` and its kin.
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        let dtype = match (module, name) {
            ("collections", "OrderedDict") => return Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor") => return Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Global::RebuildTensorV2),
            ("torch._utils", "_rebuild_parameter") => return Some(Global::RebuildParameter),
            ("torch", "DoubleStorage") => Dtype::F64,
            ("torch", "FloatStorage") => Dtype::F32,
            ("torch", "HalfStorage") => Dtype::F16,
            ("torch", "BFloat16Storage") => Dtype::BF16,
            ("torch", "LongStorage") => Dtype::I64,
            ("torch", "IntStorage") => Dtype::I32,
            ("torch", "ShortStorage") => Dtype::I16,
            ("torch", "CharStorage") => Dtype::I8,
            ("torch", "ByteStorage") => Dtype::U8,
            ("torch", "BoolStorage") => Dtype::BOOL,
            _ => return None,
        };
        Some(Global::Storage(dtype))
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float,
    Str(&'a str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    /// Key, value, key, value ...; also stands for an OrderedDict.
    Dict(Vec<Ref>),
    Global(Global),
    /// A reference to something outside the pickle: a storage.
    Persistent(Ref),
    /// A call that was not made: function, argument tuple.
    Call(Global, Ref),
}

/// Why a pickle cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PickleError {
    /// Malformed at this byte.
    Malformed(usize, &'static str),
    /// Well formed, but needs something outside the allow-list.
    Refused(String),
}

/// A pickle's values; the tree starts at `root`.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// The pickled object.
    pub(super) root: Ref,
    /// Bytes that the pickle takes.
    pub(super) len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`; whatever follows it is left alone.
    ///
    /// # Errors
    /// [`PickleError`].
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        while !machine.step()? {}
        let root = machine.pop()?;
        Ok(Pickle {
            nodes: machine.nodes,
            root,
            len: machine.at,
        })
    }

    /// The value that `at` refers to.
    pub(super) fn node(&self, at: Ref) -> &Node<'a> {
        &self.nodes[at as usize]
    }

    /// The elements of a tuple.
    pub(super) fn tuple(&self, at: Ref) -> Option<&[Ref]> {
        match self.node(at) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// A string.
    pub(super) fn str(&self, at: Ref) -> Option<&'a str> {
        match self.node(at) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn size(&self, at: Ref) -> Option<usize> {
        match self.node(at) {
            Node::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A tuple of at most 16 integers that are not negative.
    pub(super) fn sizes(&self, at: Ref) -> Option<Vec<usize>> {
        let items = self.tuple(at).filter(|items| items.len() <= 16)?;
        items.iter().map(|&i| self.size(i)).collect()
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Ref>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

type Step<T> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    /// Executes one opcode; true after the last.
    fn step(&mut self) -> Step<bool> {
        match self.byte()? {
            b'.' => return Ok(true),
            0x80 => _ = self.byte()?,
            0x95 => _ = self.take(8)?,
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'}' => self.push(Node::Dict(Vec::new())),
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            op @ (b'J' | b'K' | b'M' | 0x8a | b'G') => self.number(op)?,
            op @ (b'X' | 0x8c | b'U' | b'T') => self.string(op)?,
            op @ (b't' | 0x85..=0x87) => self.make_tuple(op)?,
            op @ (b'q' | b'r' | b'h' | b'j' | 0x94) => self.memo(op)?,
            op @ (b's' | b'u' | b'a' | b'e') => self.fill(op)?,
            b'c' => self.global()?,
            0x93 => self.stack_global()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            op => {
                return Err(PickleError::Refused(format!(
                    "it uses pickle opcode 0x{op:02x}"
                )));
            }
        }
        Ok(false)
    }

    fn number(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'J' => i32::from_le_bytes(self.array()?).into(),
            b'K' => self.byte()?.into(),
            b'M' => u16::from_le_bytes(self.array()?).into(),
            0x8a => self.long()?,
            _ => {
                self.take(8)?;
                self.push(Node::Float);
                return Ok(());
            }
        };
        self.push(Node::Int(value));
        Ok(())
    }

    fn long(&mut self) -> Step<i64> {
        let len = self.byte()?.into();
        let digits = self.take(len)?;
        if len > 8 {
            return self.malformed("an integer of more than 64 bits");
        }
        let negative = digits.last().is_some_and(|d| d & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(digits);
        Ok(i64::from_le_bytes(wide))
    }

    fn string(&mut self, op: u8) -> Step<()> {
        let len = match op {
            b'X' | b'T' => u32::from_le_bytes(self.array()?) as usize,
            _ => self.byte()?.into(),
        };
        let text = self.take(len)?;
        match str::from_utf8(text) {
            Ok(text) => self.push(Node::Str(text)),
            Err(_) => return self.malformed("text that is not UTF-8"),
        }
        Ok(())
    }

    fn make_tuple(&mut self, op: u8) -> Step<()> {
        let items = if op == b't' {
            self.pop_mark()?
        } else {
            let mut items = Vec::new();
            for _ in 0x85..=op {
                items.push(self.pop()?);
            }
            items.reverse();
            items
        };
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn memo(&mut self, op: u8) -> Step<()> {
        let index = match op {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        if op == b'h' || op == b'j' {
            match self.memo.get(&index) {
                Some(&value) => self.stack.push(value),
                None => return self.malformed("a reference to nothing"),
            }
        } else {
            let top = self.top()?;
            self.memo.insert(index, top);
        }
        Ok(())
    }

    /// Puts items into the dict or list below them.
    fn fill(&mut self, op: u8) -> Step<()> {
        let items = match op {
            b'u' | b'e' => self.pop_mark()?,
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => vec![self.pop()?],
        };
        let container = self.top()?;
        match (&mut self.nodes[container as usize], op) {
            (Node::Dict(pairs), b's' | b'u') if items.len() % 2 == 0 => pairs.extend(items),
            (Node::List(list), b'a' | b'e') => list.extend(items),
            _ => return self.malformed("items without a dict or list to put them in"),
        }
        Ok(())
    }

    fn global(&mut self) -> Step<()> {
        let module = self.line()?;
        let name = self.line()?;
        self.push_global(module, name)
    }

    fn stack_global(&mut self) -> Step<()> {
        let name = self.pop()?;
        let module = self.pop()?;
        match (&self.nodes[module as usize], &self.nodes[name as usize]) {
            (&Node::Str(module), &Node::Str(name)) => self.push_global(module, name),
            _ => self.malformed("a global without a name"),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Step<()> {
        let global = Global::find(module, name).ok_or_else(|| {
            PickleError::Refused(format!(
                "it refers to {}, which is not part of a plain checkpoint; it was not run",
                quote(&format!("{module}.{name}"))
            ))
        })?;
        self.push(Node::Global(global));
        Ok(())
    }

    fn reduce(&mut self) -> Step<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Node::Global(global) = self.nodes[function as usize] else {
            return self.malformed("a call of something that is no function");
        };
        let node = match global {
            Global::OrderedDict if self.nodes[arguments as usize] == Node::Tuple(Vec::new()) => {
                Node::Dict(Vec::new())
            }
            Global::OrderedDict => {
                return Err(PickleError::Refused(
                    "it copies a dict while it is read".into(),
                ));
            }
            global => Node::Call(global, arguments),
        };
        self.push(node);
        Ok(())
    }

    /// Attributes of an OrderedDict (module versions) carry no tensors and are dropped.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        let top = self.top()?;
        match self.nodes[top as usize] {
            Node::Dict(_) => Ok(()),
            _ => Err(PickleError::Refused("it restores a Python object".into())),
        }
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len() as Ref);
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Step<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return self.malformed("a value is missing");
        }
        self.stack
            .pop()
            .ok_or(PickleError::Malformed(self.at, "a value is missing"))
    }

    fn pop_mark(&mut self) -> Step<Vec<Ref>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.malformed("a mark is missing"),
        }
    }

    fn top(&self) -> Step<Ref> {
        match self.stack.last() {
            Some(&top) => Ok(top),
            None => self.malformed("a value is missing"),
        }
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| PickleError::Malformed(self.at, "it ends early"))
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        match self.bytes[self.at..].split_at_checked(len) {
            Some((taken, _)) => {
                self.at += len;
                Ok(taken)
            }
            None => self.malformed("it ends early"),
        }
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n');
        let Some(text) = len.and_then(|len| str::from_utf8(&rest[..len]).ok()) else {
            return self.malformed("a name without an end");
        };
        self.at += text.len() + 1;
        Ok(text)
    }

    fn malformed<T>(&self, what: &'static str) -> Step<T> {
        Err(PickleError::Malformed(self.at, what))
    }
}

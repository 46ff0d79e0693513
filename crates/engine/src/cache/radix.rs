//! A radix tree of token sequences within a bound on bytes: what sequences have in common is stored once. Knows no MLX.
//!
//! A node holds the value of its own span of tokens only, so a sequence is the nodes from a root to some node's end. A node
//! is split where another sequence diverges from it. Some layers have a state that can't be cut: it exists only at
//! positions where it was saved. Such a snapshot stands at the end of a node, and a model that has such layers can be
//! restored at snapshots only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    ops::Range,
    sync::Arc,
};

use super::{
    evicted::{Evicted, Part},
    lookup::{PrefixLookup, Reason, SHORTEST},
};
use crate::model::ModelName;

/// What is stored of the tokens of a span.
pub(crate) trait Run: Sized {
    /// Why it can't be split.
    type Error;

    /// What it takes. Both halves of a split take as much as the whole.
    fn bytes(&self) -> u64;

    /// Whether somebody beside the tree has it, so that its memory stays.
    fn is_used(&self) -> bool;

    /// Its first `at` tokens and the rest, neither of which is empty, and which share no memory.
    fn split(&self, at: usize) -> Result<(Self, Self), Self::Error>;
}

/// The state, after a token, of layers whose state can't be cut.
pub(crate) trait Snapshot {
    /// What it takes.
    fn bytes(&self) -> u64;
}

/// Of models whose layers can all be cut.
impl Snapshot for Infallible {
    fn bytes(&self) -> u64 {
        match *self {}
    }
}

type NodeId = u64;

/// When something was used last, what it costs to compute it again, and of which node it is: what is smallest goes first.
type Rank = (u64, u64, NodeId);

/// Sequences of all models.
#[derive(Debug)]
pub(crate) struct RadixTree<R, S> {
    limit_bytes: u64,
    bytes: u64,
    /// Rises with every use.
    clock: u64,
    next_id: NodeId,
    nodes: HashMap<NodeId, Node<R, S>>,
    models: HashMap<ModelName, Root>,
    /// What may go: leaves, and snapshots of other nodes.
    ranks: BTreeSet<Rank>,
    evicted: Evicted,
}

/// Where a model's sequences begin.
#[derive(Debug)]
struct Root {
    /// Whether sequences can be restored at any token.
    cuttable: bool,
    bytes: u64,
    children: BTreeMap<u32, NodeId>,
}

#[derive(Debug)]
struct Node<R, S> {
    model: ModelName,
    parent: Option<NodeId>,
    /// Tokens before it.
    start: usize,
    /// Not empty.
    tokens: Vec<u32>,
    run: R,
    snapshot: Option<Held<S>>,
    /// By their first token.
    children: BTreeMap<u32, NodeId>,
    last_used: u64,
}

#[derive(Debug)]
struct Held<S> {
    state: S,
    last_used: u64,
}

/// A node on the way of a sequence.
struct Step {
    id: NodeId,
    /// How many of the node's tokens agree.
    taken: usize,
    /// Whether these are all.
    whole: bool,
}

/// What was found. As long as it is held, nothing can be evicted.
#[derive(Debug)]
pub(crate) struct Found<'t, R, S> {
    pub(crate) lookup: PrefixLookup,
    /// The values of the restored tokens, in order, each with how many of its tokens are meant.
    pub(crate) spans: Vec<(&'t R, usize)>,
    /// The state after the restored tokens, in a model that needs one.
    pub(crate) snapshot: Option<&'t S>,
}

/// A sequence whose last value is about to be evicted.
#[derive(Debug)]
pub(crate) struct Leaving<'t, R> {
    pub(crate) model: &'t ModelName,
    /// From the first to the last whose value goes.
    pub(crate) tokens: &'t [u32],
    /// Their values, in order. The last one goes, the others are needed to make use of it.
    pub(crate) runs: Vec<&'t R>,
}

impl<R: Run, S: Snapshot> RadixTree<R, S> {
    /// A tree that takes `limit_bytes` at most; with 0 it stays empty.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            bytes: 0,
            clock: 0,
            next_id: 0,
            nodes: HashMap::new(),
            models: HashMap::new(),
            ranks: BTreeSet::new(),
            evicted: Evicted::default(),
        }
    }

    /// The most bytes that it may take.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Bytes of all values and snapshots.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a model's values and snapshots.
    pub(crate) fn bytes_of(&self, model: &ModelName) -> u64 {
        self.models.get(model).map_or(0, |root| root.bytes)
    }

    /// How many of the first of these tokens are those of a sequence that is there.
    pub(crate) fn matched(&self, model: &ModelName, tokens: &[u32]) -> usize {
        self.walk(model, tokens).iter().map(|step| step.taken).sum()
    }

    /// The longest beginning of a prompt that can be restored. Its last token never is.
    pub(crate) fn lookup(&mut self, model: &ModelName, prompt: &[u32]) -> Found<'_, R, S> {
        let path = self.walk(model, prompt);
        let cuttable = self.models.get(model).is_none_or(|root| root.cuttable);
        let matched: usize = path.iter().map(|step| step.taken).sum();
        let usable = matched.min(prompt.len().saturating_sub(1));
        let end_of = |step: &Step| self.nodes.get(&step.id).filter(|node| step.whole && node.snapshot.is_some());
        let snapshots = path.iter().filter_map(end_of).map(Node::end).filter(|end| *end <= usable);
        let restored = if cuttable { usable } else { snapshots.max().unwrap_or_default() };
        let restored = if restored < SHORTEST { 0 } else { restored };
        let reason = if restored > 0 && restored + 1 == prompt.len() {
            Reason::WholePrompt
        } else if self.was_evicted(model, prompt, cuttable, if cuttable { matched } else { restored }) {
            Reason::Evicted
        } else if matched == 0 {
            Reason::NothingAlike
        } else if usable < SHORTEST {
            Reason::TooShort
        } else if restored < usable {
            Reason::NoSnapshotBefore(usable)
        } else if path.last().is_some_and(|step| step.whole && self.is_leaf(step.id)) {
            Reason::EndsAt(matched)
        } else {
            Reason::DivergesAt(matched)
        };
        self.clock += 1;
        let now = self.clock;
        let (mut spans, mut last, mut left) = (Vec::new(), None, restored);
        for Step { id, taken, .. } in path {
            let taken = taken.min(left);
            if taken == 0 {
                break;
            }
            left -= taken;
            self.change(id, |node| {
                node.last_used = now;
                if let Some(held) = node.snapshot.as_mut().filter(|_| !cuttable && left == 0) {
                    held.last_used = now;
                }
            });
            spans.push((id, taken));
            last = Some(id);
        }
        let spans = spans.into_iter().filter_map(|(id, taken)| Some((&self.nodes.get(&id)?.run, taken))).collect();
        let last = last.filter(|_| !cuttable).and_then(|id| self.nodes.get(&id));
        let snapshot = last.and_then(|node| node.snapshot.as_ref()).map(|held| &held.state);
        let lookup = PrefixLookup { prompt: prompt.len(), matched, restored, from_disk: 0, reason };
        Found { lookup, spans, snapshot }
    }

    /// Bytes of what would go if all that may were evicted.
    pub(crate) fn unused_bytes(&self) -> u64 {
        self.nodes.values().filter(|node| !node.run.is_used()).map(Node::bytes).sum()
    }

    /// Bytes that a prompt has in common with nodes, with at least so many tokens of each.
    pub(crate) fn common_bytes(&self, model: &ModelName, prompt: &[u32], least: usize) -> u64 {
        let bytes = |Step { id, taken, .. }: Step| {
            let node = self.nodes.get(&id).filter(|_| taken >= least)?;
            Some(node.run.bytes() * taken as u64 / node.tokens.len().max(1) as u64)
        };
        self.walk(model, prompt).into_iter().filter_map(bytes).sum()
    }

    /// Splits the node inside which a prompt leaves what is there after at least so many of the node's tokens, so that both go
    /// on from the end of one.
    pub(crate) fn fork(&mut self, model: &ModelName, prompt: &[u32], least: usize) -> Result<(), R::Error> {
        let path = self.walk(model, prompt);
        let matched: usize = path.iter().map(|step| step.taken).sum();
        match path.last() {
            Some(step) if !step.whole && step.taken >= least && matched < prompt.len() => {
                self.split(step.id, step.taken).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Keeps a sequence, as far as it is not kept already: `make` gives the values of ranges of its tokens that are new.
    /// `snapshots` are states after so many tokens, in order; a model that is not `cuttable` can be restored there only, so
    /// what comes after the last of them is not kept. The least recently used go until all fits, which `leaving` hears. False
    /// when it can't fit, or is too short to be found.
    pub(crate) fn insert(
        &mut self,
        model: &ModelName,
        tokens: &[u32],
        cuttable: bool,
        mut snapshots: Vec<(usize, S)>,
        mut make: impl FnMut(Range<usize>) -> Result<R, R::Error>,
        mut leaving: impl FnMut(Leaving<'_, R>),
    ) -> Result<bool, R::Error> {
        snapshots.retain(|(at, _)| (1..=tokens.len()).contains(at));
        let end = if cuttable { tokens.len() } else { snapshots.last().map_or(0, |(at, _)| *at) };
        if end < SHORTEST || self.limit_bytes == 0 {
            return Ok(false);
        }
        let Some(tokens) = tokens.get(..end) else { return Ok(false) };
        self.models.entry(Arc::clone(model)).or_insert_with(|| Root { cuttable, bytes: 0, children: BTreeMap::new() });
        let matched = self.matched(model, tokens);
        // All that can fail comes before anything is added.
        for at in snapshots.iter().map(|(at, _)| *at).filter(|at| *at <= matched) {
            self.cut(model, tokens, at)?;
        }
        let mut parent = if matched < end { self.cut(model, tokens, matched)? } else { None };
        let mut added = Vec::new();
        let mut from = matched;
        for to in snapshots.iter().map(|(at, _)| *at).filter(|at| *at > matched).chain([end]) {
            if to > from {
                added.push((from..to, make(from..to)?));
                from = to;
            }
        }
        let kept: u64 = self
            .walk(model, tokens)
            .iter()
            .filter_map(|step| self.nodes.get(&step.id))
            .map(|node| node.run.bytes())
            .sum();
        let runs = kept + added.iter().map(|(_, run)| run.bytes()).sum::<u64>();
        let fits = |snapshots: &[(usize, S)]| {
            runs + snapshots.iter().map(|(_, state)| state.bytes()).sum::<u64>() <= self.limit_bytes
        };
        // The latest are those that the next turn of a conversation begins at.
        while snapshots.len() > 1 && !fits(&snapshots) {
            snapshots.remove(0);
        }
        if !fits(&snapshots) {
            return Ok(false);
        }
        self.clock += 1;
        for (range, run) in added {
            let span = tokens.get(range.clone()).unwrap_or_default().to_vec();
            parent = Some(self.attach(model, parent, range.start, span, run));
        }
        for (at, state) in snapshots {
            if let Some(id) = self.cut(model, tokens, at)? {
                self.save(id, state);
            }
        }
        let now = self.clock;
        for step in self.walk(model, tokens) {
            self.change(step.id, |node| node.last_used = now);
        }
        // What was just used comes last, and fits.
        while self.bytes > self.limit_bytes && self.evict(&mut leaving) {}
        Ok(true)
    }

    /// Drops what was not used for longest: a leaf, which `leaving` hears before, or a snapshot. False when there is nothing
    /// that nobody has.
    pub(crate) fn evict(&mut self, leaving: impl FnOnce(Leaving<'_, R>)) -> bool {
        let is_used = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.run.is_used());
        let Some(id) = self.ranks.iter().map(|(.., id)| *id).find(|id| !is_used(id)) else { return false };
        let beginning = self.tokens_up_to(id);
        let Some(node) = self.nodes.get(&id) else { return false };
        let model = Arc::clone(&node.model);
        if node.snapshot.is_some() {
            self.evicted.remember(&model, Part::Snapshot, beginning.iter().copied());
        }
        if self.is_leaf(id) {
            let runs = self.path_to(id).into_iter().map(|node| &node.run).collect();
            leaving(Leaving { model: &model, tokens: &beginning, runs });
            // Of this length, what agrees was worth restoring.
            let telling = self.nodes.get(&id).map_or(0, |node| node.end().min(node.start + SHORTEST));
            self.evicted.remember(&model, Part::Run, beginning.into_iter().take(telling));
            self.remove(id);
        } else {
            let mut freed = 0;
            self.change(id, |node| freed = node.snapshot.take().map_or(0, |held| held.state.bytes()));
            self.count(&model, 0, freed);
        }
        true
    }

    /// Drops all of a model's, which it gives, and forgets what was evicted of it.
    pub(crate) fn forget(&mut self, model: &ModelName) -> Vec<R> {
        let Some(root) = self.models.remove(model) else { return Vec::new() };
        self.bytes -= root.bytes;
        let dropped = self.nodes.extract_if(|_, node| node.model == *model).map(|(_, node)| node.run).collect();
        self.ranks.retain(|(.., id)| self.nodes.contains_key(id));
        self.evicted.forget(model);
        dropped
    }

    /// The nodes that a sequence goes along, as far as it agrees with any.
    fn walk(&self, model: &ModelName, tokens: &[u32]) -> Vec<Step> {
        let mut path = Vec::new();
        let Some(root) = self.models.get(model) else { return path };
        let (mut children, mut rest) = (&root.children, tokens);
        while let Some(id) = rest.first().and_then(|token| children.get(token))
            && let Some(node) = self.nodes.get(id)
        {
            let taken = node.tokens.iter().zip(rest).take_while(|(kept, token)| kept == token).count();
            let whole = taken == node.tokens.len();
            path.push(Step { id: *id, taken, whole });
            if !whole {
                break;
            }
            (children, rest) = (&node.children, rest.get(taken..).unwrap_or_default());
        }
        path
    }

    /// The node that ends after so many tokens of a sequence that is there that far; `None` is the root. One that goes on
    /// is split.
    fn cut(&mut self, model: &ModelName, tokens: &[u32], at: usize) -> Result<Option<NodeId>, R::Error> {
        let path = self.walk(model, tokens.get(..at).unwrap_or_default());
        match path.last() {
            Some(Step { id, taken, whole: false }) => self.split(*id, *taken).map(Some),
            last => Ok(last.map(|step| step.id)),
        }
    }

    /// Splits a node after so many of its tokens, and gives the first half. The second one stays the node that it was, for
    /// its children and its snapshot are there.
    fn split(&mut self, id: NodeId, at: usize) -> Result<NodeId, R::Error> {
        let head_id = self.next_id;
        self.next_id += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(id) };
        let (head, tail) = node.run.split(at)?;
        if let Some(rank) = node.rank(id) {
            self.ranks.remove(&rank);
        }
        let (freed, taken) = (node.run.bytes(), head.bytes() + tail.bytes());
        let mut rest = std::mem::take(&mut node.tokens);
        let tail_tokens = rest.split_off(at);
        let (first, next) = (rest.first().copied(), tail_tokens.first().copied());
        let head = Node {
            model: Arc::clone(&node.model),
            parent: node.parent.replace(head_id),
            start: node.start,
            tokens: rest,
            run: head,
            snapshot: None,
            children: next.into_iter().map(|token| (token, id)).collect(),
            last_used: node.last_used,
        };
        let (model, parent) = (Arc::clone(&node.model), head.parent);
        self.nodes.insert(head_id, head);
        self.change(id, |node| {
            node.tokens = tail_tokens;
            node.start += at;
            node.run = tail;
        });
        if let Some(first) = first {
            self.adopt(&model, parent, first, head_id);
        }
        self.count(&model, taken, freed);
        Ok(head_id)
    }

    /// Adds a leaf.
    fn attach(&mut self, model: &ModelName, parent: Option<NodeId>, start: usize, tokens: Vec<u32>, run: R) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        self.count(model, run.bytes(), 0);
        let first = tokens.first().copied();
        let (model, last_used) = (Arc::clone(model), self.clock);
        let node = Node {
            model: Arc::clone(&model),
            parent,
            start,
            tokens,
            run,
            snapshot: None,
            children: BTreeMap::new(),
            last_used,
        };
        self.nodes.insert(id, node);
        self.change(id, |_| {});
        if let Some(first) = first {
            self.adopt(&model, parent, first, id);
        }
        id
    }

    fn adopt(&mut self, model: &ModelName, parent: Option<NodeId>, first: u32, child: NodeId) {
        if let Some(parent) = parent {
            self.change(parent, |node| {
                node.children.insert(first, child);
            });
        } else if let Some(root) = self.models.get_mut(model) {
            root.children.insert(first, child);
        }
    }

    /// Saves a state at a node's end. One that is there already stays: it is the same.
    fn save(&mut self, id: NodeId, state: S) {
        let (now, bytes) = (self.clock, state.bytes());
        let Some(model) = self.nodes.get(&id).map(|node| Arc::clone(&node.model)) else { return };
        let mut added = 0;
        self.change(id, |node| match &mut node.snapshot {
            Some(held) => held.last_used = now,
            None => {
                node.snapshot = Some(Held { state, last_used: now });
                added = bytes;
            }
        });
        self.count(&model, added, 0);
    }

    /// Takes a leaf out, and then what only led to it: without a snapshot nothing could be restored from that.
    fn remove(&mut self, id: NodeId) {
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(node) = self.nodes.remove(&id) else { return };
            if let Some(rank) = node.rank(id) {
                self.ranks.remove(&rank);
            }
            self.count(&node.model, 0, node.bytes());
            let Some(first) = node.tokens.first() else { return };
            let Some(parent) = node.parent else {
                if let Some(root) = self.models.get_mut(&node.model) {
                    root.children.remove(first);
                }
                return;
            };
            self.change(parent, |parent| {
                parent.children.remove(first);
            });
            let cuttable = self.models.get(&node.model).is_none_or(|root| root.cuttable);
            let useless = |parent: &&Node<R, S>| !cuttable && parent.children.is_empty() && parent.snapshot.is_none();
            next = self.nodes.get(&parent).filter(useless).map(|_| parent);
        }
    }

    /// Whether more than so many tokens could have been restored, had nothing been evicted.
    fn was_evicted(&self, model: &ModelName, prompt: &[u32], cuttable: bool, found: usize) -> bool {
        let part = if cuttable { Part::Run } else { Part::Snapshot };
        let usable = prompt.split_last().map_or(&[][..], |(_, before)| before);
        self.evicted.has(model, part, usable, SHORTEST.max(found + 1))
    }

    /// Changes a node, and with it its rank.
    fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node<R, S>)) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(rank) = node.rank(id) {
            self.ranks.remove(&rank);
        }
        change(node);
        self.ranks.extend(node.rank(id));
    }

    fn count(&mut self, model: &ModelName, added: u64, freed: u64) {
        self.bytes = self.bytes + added - freed;
        if let Some(root) = self.models.get_mut(model) {
            root.bytes = root.bytes + added - freed;
        }
    }

    fn is_leaf(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.children.is_empty())
    }

    /// All tokens from the root to a node's end.
    fn tokens_up_to(&self, id: NodeId) -> Vec<u32> {
        self.path_to(id).into_iter().map(|node| node.tokens.as_slice()).collect::<Vec<_>>().concat()
    }

    /// The nodes from the root to one.
    fn path_to(&self, id: NodeId) -> Vec<&Node<R, S>> {
        let mut path = Vec::new();
        let mut next = Some(id);
        while let Some(node) = next.and_then(|id| self.nodes.get(&id)) {
            path.push(node);
            next = node.parent;
        }
        path.reverse();
        path
    }
}

impl<R: Run, S: Snapshot> Node<R, S> {
    fn end(&self) -> usize {
        self.start + self.tokens.len()
    }

    fn bytes(&self) -> u64 {
        self.run.bytes() + self.snapshot.as_ref().map_or(0, |held| held.state.bytes())
    }

    /// When it goes, or its snapshot if others need the rest; `None` when nothing of it may go. What it costs to compute a
    /// token rises with its position.
    fn rank(&self, id: NodeId) -> Option<Rank> {
        let cost = self.tokens.len() as u64 * self.end() as u64;
        if self.children.is_empty() {
            return Some((self.last_used, cost, id));
        }
        self.snapshot.as_ref().map(|held| (held.last_used, cost, id))
    }
}

#[cfg(test)]
mod tests;

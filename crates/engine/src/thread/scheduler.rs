//! temporary
use std::{collections::{HashSet, VecDeque}, sync::Arc, time::Duration};
use tokio::time::Instant;
use crate::model::ModelName;
pub(super) type SequenceId = u64;
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits { pub(super) max_batch: usize, pub(super) queue: usize, pub(super) prefill_chunk: usize }
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk { pub(super) id: SequenceId, pub(super) tokens: usize }
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step { pub(super) model: ModelName, pub(super) decode: Vec<SequenceId>, pub(super) prefill: Vec<Chunk> }
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action { Start(SequenceId), Preempt(SequenceId), Step(Step), Load(ModelName), Idle }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFull;
#[derive(Debug)]
struct Running { id: SequenceId, model: ModelName, left: usize }
#[derive(Debug)]
pub(super) struct Scheduler { limits: Limits, waiting: VecDeque<(SequenceId, ModelName)>, running: Vec<Running>, loading: VecDeque<ModelName>, ready: HashSet<ModelName>, turn: usize }
impl Scheduler {
    pub(super) fn new(limits: Limits) -> Self { Self { limits, waiting: VecDeque::new(), running: Vec::new(), loading: VecDeque::new(), ready: HashSet::new(), turn: 0 } }
    pub(super) fn submit(&mut self, id: SequenceId, model: ModelName, _tokens: u64, _now: Instant) -> Result<(), QueueFull> {
        let free = self.limits.max_batch - self.running.len();
        let startable = self.waiting.iter().filter(|(_, model)| self.ready.contains(model)).count();
        let starts = self.ready.contains(&model) && startable < free;
        if !starts && self.waiting.len() - startable.min(free) >= self.limits.queue { return Err(QueueFull); }
        self.waiting.push_back((id, model)); Ok(())
    }
    pub(super) fn started(&mut self, id: SequenceId, left: usize, _computed: usize) { if let Some(r) = self.running.iter_mut().find(|r| r.id == id) { r.left = left; } }
    pub(super) fn stepped(&mut self, step: &Step, _took: Duration) { for c in &step.prefill { if let Some(r) = self.running.iter_mut().find(|r| r.id == c.id) { r.left -= c.tokens.min(r.left); } } }
    pub(super) fn requeue(&mut self, id: SequenceId, _tokens: u64, _now: Instant) { if let Some(at) = self.running.iter().position(|r| r.id == id) { let r = self.running.remove(at); self.waiting.push_back((r.id, r.model)); } }
    pub(super) fn remove(&mut self, id: SequenceId, _now: Instant) { self.waiting.retain(|(w, _)| *w != id); self.running.retain(|r| r.id != id); }
    pub(super) fn load(&mut self, model: ModelName) { if !self.ready.contains(&model) && !self.loading.contains(&model) { self.loading.push_back(model); } }
    pub(super) fn loaded(&mut self, model: &ModelName) { self.loading.retain(|l| l != model); self.ready.insert(Arc::clone(model)); }
    pub(super) fn unloaded(&mut self, model: &ModelName) { self.loading.retain(|l| l != model); self.ready.remove(model); }
    pub(super) fn waiting(&self) -> usize { self.waiting.len() }
    #[cfg(test)]
    pub(super) fn running(&self) -> usize { self.running.len() }
    pub(super) fn of_model(&self, model: &ModelName) -> Vec<SequenceId> {
        self.waiting.iter().filter(|(_, n)| n == model).map(|(id, _)| *id).chain(self.running.iter().filter(|r| r.model == *model).map(|r| r.id)).collect()
    }
    pub(super) fn is_idle(&self) -> bool { self.running.is_empty() && self.loading.is_empty() && self.first().is_none() }
    fn first(&self) -> Option<usize> { self.waiting.iter().position(|(_, m)| self.ready.contains(m)) }
    pub(super) fn next(&mut self, _now: Instant) -> Action {
        if self.running.len() < self.limits.max_batch && let Some(at) = self.first() && let Some((id, model)) = self.waiting.remove(at) {
            self.running.push(Running { id, model, left: 0 }); return Action::Start(id);
        }
        self.turn += 1;
        let models: Vec<ModelName> = { let mut m: Vec<ModelName> = self.running.iter().map(|r| Arc::clone(&r.model)).collect(); m.sort(); m.dedup(); m };
        let kinds = models.len() + self.loading.len();
        if kinds == 0 { return Action::Idle; }
        let at = self.turn % kinds;
        let Some(model) = models.get(at) else { let m = self.loading.pop_front().expect("one"); self.loading.push_back(Arc::clone(&m)); return Action::Load(m); };
        let decode: Vec<SequenceId> = self.running.iter().filter(|r| r.model == *model && r.left == 0).map(|r| r.id).collect();
        let mut budget = if decode.is_empty() { self.limits.prefill_chunk.min(256) } else { self.limits.prefill_chunk.min(16) };
        let mut prefill = Vec::new();
        for r in self.running.iter().filter(|r| r.model == *model && r.left > 0) { let n = r.left.min(budget); if n == 0 { break; } budget -= n; prefill.push(Chunk { id: r.id, tokens: n }); }
        Action::Step(Step { model: Arc::clone(model), decode, prefill })
    }
}

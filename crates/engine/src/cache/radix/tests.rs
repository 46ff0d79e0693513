//! The tree against a list of whole sequences, and with layers whose state can't be cut.

use proptest::prelude::*;

use super::*;

/// The value of a token is the token and its position, of so many bytes.
const BYTES: u64 = 3;

#[derive(Debug, Clone, PartialEq)]
struct Tokens(Vec<(usize, u32)>);

impl Run for Tokens {
    type Error = Infallible;

    fn bytes(&self) -> u64 {
        BYTES * self.0.len() as u64
    }

    fn is_used(&self) -> bool {
        false
    }

    fn split(&self, at: usize) -> Result<(Self, Self), Infallible> {
        let (head, tail) = self.0.split_at(at);
        assert!(!head.is_empty() && !tail.is_empty());
        Ok((Self(head.to_vec()), Self(tail.to_vec())))
    }
}

/// A recurrent state: a digest of all tokens before it.
#[derive(Debug, Clone, PartialEq)]
struct State(u64);

const STATE_BYTES: u64 = 40;

impl State {
    fn after(tokens: &[u32]) -> Self {
        Self(tokens.iter().fold(7, |state, token| state * 31 % 1_000_003 + u64::from(*token)))
    }
}

impl Snapshot for State {
    fn bytes(&self) -> u64 {
        STATE_BYTES
    }
}

type Tree = RadixTree<Tokens, State>;

fn model(number: u8) -> ModelName {
    format!("model-{number}").into()
}

fn values(tokens: &[u32], range: Range<usize>) -> Tokens {
    Tokens(range.map(|position| (position, tokens[position])).collect())
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Keeps a sequence with snapshots at these positions; without any, of a model that can be cut.
fn keep(tree: &mut Tree, name: &ModelName, tokens: &[u32], snapshots: &[usize]) -> (bool, usize) {
    let mut made = 0;
    let states = snapshots.iter().map(|at| (*at, State::after(&tokens[..*at]))).collect();
    let kept = tree.insert(
        name,
        tokens,
        snapshots.is_empty(),
        states,
        |range| {
            made += range.len();
            Ok(values(tokens, range))
        },
        |_| {},
    );
    (kept.unwrap(), made)
}

/// Looks up, and checks that what is restored is what was stored.
fn find(tree: &mut Tree, name: &ModelName, prompt: &[u32]) -> PrefixLookup {
    let found = tree.lookup(name, prompt);
    let restored: Vec<_> = found.spans.iter().flat_map(|(run, taken)| &run.0[..*taken]).copied().collect();
    assert_eq!(Tokens(restored), values(prompt, 0..found.lookup.restored));
    if let Some(state) = found.snapshot {
        assert_eq!(*state, State::after(&prompt[..found.lookup.restored]));
    }
    assert!(found.lookup.restored < prompt.len().max(1));
    found.lookup
}

/// What must hold at any time.
fn check(tree: &Tree) {
    assert!(tree.bytes <= tree.limit_bytes, "{} of {}", tree.bytes, tree.limit_bytes);
    assert_eq!(tree.bytes, tree.nodes.values().map(Node::bytes).sum::<u64>());
    for (name, root) in &tree.models {
        let nodes = || tree.nodes.values().filter(|node| node.model == *name);
        assert_eq!(tree.bytes_of(name), nodes().map(Node::bytes).sum::<u64>());
        assert_eq!(root.children.len(), nodes().filter(|node| node.parent.is_none()).count());
    }
    let ranks = tree.nodes.iter().filter_map(|(id, node)| node.rank(*id)).collect();
    assert_eq!(tree.ranks, ranks);
    for (id, node) in &tree.nodes {
        assert_eq!(node.run, values(&tree.tokens_up_to(*id), node.start..node.end()));
        for (first, child) in &node.children {
            let child = &tree.nodes[child];
            assert_eq!((child.parent, child.start, child.tokens[0]), (Some(*id), node.end(), *first));
        }
    }
}

/// Of few tokens, so that many begin alike, after an optional beginning that is long enough to be found.
fn tokens() -> impl Strategy<Value = Vec<u32>> {
    (any::<bool>(), proptest::collection::vec(0..3_u32, 1..40)).prop_map(|(common, mut rest)| {
        if common {
            rest.splice(0..0, std::iter::repeat_n(1, SHORTEST - 2));
        }
        rest
    })
}

#[derive(Debug, Clone)]
enum Input {
    Find(u8, Vec<u32>),
    Keep(u8, Vec<u32>),
    Evict,
    Forget(u8),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        6 => (0..2_u8, tokens()).prop_map(|(model, tokens)| Input::Find(model, tokens)),
        6 => (0..2_u8, tokens()).prop_map(|(model, tokens)| Input::Keep(model, tokens)),
        1 => Just(Input::Evict),
        1 => (0..2_u8).prop_map(Input::Forget),
    ]
}

/// Positions of snapshots of a sequence, made up from its tokens.
fn snapshots_of(tokens: &[u32]) -> Vec<usize> {
    (1..=tokens.len()).filter(|at| at % 9 == 0 || *at == tokens.len()).collect()
}

proptest! {
    #[test]
    fn it_finds_what_a_list_of_sequences_has(inputs in proptest::collection::vec(input(), 1..60)) {
        let mut tree = Tree::new(u64::MAX);
        let mut list: Vec<(ModelName, Vec<u32>)> = Vec::new();
        for input in inputs {
            match input {
                Input::Find(number, prompt) => {
                    let name = model(number);
                    let kept = || list.iter().filter(|(of, _)| *of == name).map(|(_, kept)| kept);
                    let longest = kept().map(|kept| common(kept, &prompt)).max().unwrap_or(0);
                    let found = find(&mut tree, &name, &prompt);
                    let usable = longest.min(prompt.len() - 1);
                    let restored = if usable < SHORTEST { 0 } else { usable };
                    prop_assert_eq!((found.matched, found.restored), (longest, restored));
                    let goes_on = kept().any(|kept| common(kept, &prompt) == longest && kept.len() > longest);
                    let expected = match (longest, restored) {
                        (_, 1..) if restored + 1 == prompt.len() => Reason::WholePrompt,
                        (0, _) => Reason::NothingAlike,
                        (_, 0) => Reason::TooShort,
                        _ if goes_on => Reason::DivergesAt(longest),
                        _ => Reason::EndsAt(longest),
                    };
                    prop_assert_eq!(found.reason, expected);
                }
                Input::Keep(number, tokens) => {
                    let name = model(number);
                    let kept = list.iter().filter(|(of, _)| *of == name).map(|(_, kept)| common(kept, &tokens));
                    let new = tokens.len() - kept.max().unwrap_or(0);
                    let long_enough = tokens.len() >= SHORTEST;
                    let expected = (long_enough, if long_enough { new } else { 0 });
                    prop_assert_eq!(keep(&mut tree, &name, &tokens, &[]), expected, "only what is new is copied");
                    if long_enough {
                        list.push((name, tokens));
                    }
                }
                Input::Evict => {}
                Input::Forget(number) => {
                    tree.forget(&model(number));
                    list.retain(|(of, _)| *of != model(number));
                }
            }
            // Every token of every beginning once.
            let beginnings: std::collections::BTreeSet<_> =
                list.iter().flat_map(|(of, kept)| (1..=kept.len()).map(move |end| (of, &kept[..end]))).collect();
            prop_assert_eq!(tree.bytes(), BYTES * beginnings.len() as u64);
            check(&tree);
        }
    }

    #[test]
    fn within_a_bound_the_figures_are_exact_and_what_is_said_is_true(
        inputs in proptest::collection::vec(input(), 1..60), limit in 0..500_u64, cuttable: bool,
    ) {
        let mut tree = Tree::new(limit);
        let mut ever: Vec<(ModelName, Vec<u32>)> = Vec::new();
        for input in inputs {
            match input {
                Input::Find(number, prompt) => {
                    let name = model(number);
                    let before: Vec<_> = ever.iter().filter(|(of, _)| *of == name).collect();
                    let longest = before.iter().map(|(_, kept)| common(kept, &prompt)).max().unwrap_or(0);
                    let found = find(&mut tree, &name, &prompt);
                    prop_assert!(found.restored <= found.matched && found.matched <= longest);
                    match found.reason {
                        Reason::Evicted if cuttable => prop_assert!(longest > found.matched),
                        Reason::Evicted => prop_assert!(longest > found.restored),
                        Reason::NoSnapshotBefore(at) => prop_assert!(!cuttable && found.restored < at),
                        _ => {}
                    }
                }
                Input::Keep(number, tokens) => {
                    let snapshots = if cuttable { Vec::new() } else { snapshots_of(&tokens) };
                    let (kept, _) = keep(&mut tree, &model(number), &tokens, &snapshots);
                    if kept {
                        // It was just used, so that others went.
                        let again = find(&mut tree, &model(number), &[&tokens[..], &[9]].concat());
                        prop_assert_eq!(again.restored, tokens.len());
                        ever.push((model(number), tokens));
                    }
                }
                Input::Evict => {
                    let something = !tree.nodes.is_empty();
                    prop_assert_eq!(tree.evict(|_| {}), something);
                }
                Input::Forget(number) => {
                    tree.forget(&model(number));
                    ever.retain(|(of, _)| *of != model(number));
                }
            }
            check(&tree);
        }
        while tree.evict(|_| {}) {
            check(&tree);
        }
        prop_assert_eq!((tree.bytes(), tree.nodes.len()), (0, 0));
    }
}

fn counting(tokens: Range<u32>) -> Vec<u32> {
    tokens.collect()
}

#[test]
fn a_shared_beginning_is_stored_once() {
    let mut tree = Tree::new(u64::MAX);
    let system = counting(0..1000);
    for user in 1..=20 {
        let sequence = [&system[..], &[5000 + user; 30]].concat();
        assert!(keep(&mut tree, &model(0), &sequence, &[]).0);
        assert_eq!(tree.bytes(), BYTES * (1000 + 30 * u64::from(user)));
    }
    // Another model has its own.
    assert_eq!(find(&mut tree, &model(1), &system).reason, Reason::NothingAlike);
}

#[test]
fn the_least_recently_used_leaf_goes_first_and_the_lookup_says_so() {
    let mut tree = Tree::new(BYTES * 150);
    let system = counting(0..50);
    let conversation = |user: u32| [&system[..], &counting(1000 * user..1000 * user + 50)].concat();
    for user in [1, 2] {
        assert!(keep(&mut tree, &model(0), &conversation(user), &[]).0);
    }
    assert_eq!(find(&mut tree, &model(0), &conversation(1)).reason, Reason::WholePrompt);
    assert!(keep(&mut tree, &model(0), &conversation(3), &[]).0);
    let lookups = [1, 2, 3, 4].map(|user| find(&mut tree, &model(0), &conversation(user)));
    assert_eq!(lookups.map(|lookup| lookup.restored), [99, 50, 99, 50]);
    let reasons = [Reason::WholePrompt, Reason::Evicted, Reason::WholePrompt, Reason::DivergesAt(50)];
    assert_eq!(lookups.map(|lookup| lookup.reason), reasons);
    // What is larger than the bound costs nobody anything.
    assert!(!keep(&mut tree, &model(0), &counting(9000..9151), &[]).0);
    assert_eq!(find(&mut tree, &model(0), &conversation(1)).restored, 99);
    // Forgotten is not evicted.
    tree.forget(&model(0));
    assert_eq!(find(&mut tree, &model(0), &conversation(2)).reason, Reason::NothingAlike);
}

#[test]
fn of_two_that_were_used_together_what_costs_less_goes_first() {
    let mut tree = Tree::new(u64::MAX);
    keep(&mut tree, &model(0), &counting(0..20), &[]);
    keep(&mut tree, &model(0), &counting(100..160), &[]);
    let ids: Vec<NodeId> = tree.nodes.keys().copied().collect();
    ids.into_iter().for_each(|id| tree.change(id, |node| node.last_used = 1));
    tree.evict(|_| {});
    assert_eq!(tree.bytes(), BYTES * 60);
}

#[test]
fn a_recurrent_model_is_restored_where_its_state_was_saved() {
    let mut tree = Tree::new(u64::MAX);
    // A history of 60 tokens, a generation prompt, and an answer; the next turn leaves out what the answer thought.
    let sequence = counting(0..100);
    assert!(keep(&mut tree, &model(0), &sequence, &[60, 100]).0);
    let next = [&sequence[..70], &counting(500..540)].concat();
    let found = find(&mut tree, &model(0), &next);
    assert_eq!((found.matched, found.restored, found.reason), (70, 60, Reason::NoSnapshotBefore(70)));
    assert!(tree.lookup(&model(0), &next).snapshot.is_some());
    // The next turn keeps the state at the end of the history, and diverges after it.
    assert!(keep(&mut tree, &model(0), &next, &[90, 110]).0);
    for prompt in [&sequence[..61], &[&sequence[..61], &[7]].concat()] {
        assert_eq!(find(&mut tree, &model(0), prompt).restored, 60);
    }
    let third = [&next[..], &[1, 2, 3]].concat();
    let found = find(&mut tree, &model(0), &third);
    assert_eq!((found.restored, found.reason), (110, Reason::EndsAt(110)));
    assert_eq!(tree.bytes(), BYTES * (100 + 40) + 4 * STATE_BYTES);
    // Before the first state there is nothing to begin with.
    let early = find(&mut tree, &model(0), &sequence[..50]);
    assert_eq!((early.matched, early.restored, early.reason), (50, 0, Reason::NoSnapshotBefore(49)));
}

#[test]
fn what_can_not_be_restored_is_not_kept() {
    let mut tree = Tree::new(u64::MAX);
    let sequence = counting(0..100);
    assert!(keep(&mut tree, &model(0), &sequence, &[40]).0);
    assert_eq!(tree.bytes(), BYTES * 40 + STATE_BYTES);
    // Its leaf goes, and what only led to it.
    assert!(keep(&mut tree, &model(0), &[&sequence[..20], &[7; 20]].concat(), &[40]).0);
    assert!(tree.evict(|_| {}) && tree.evict(|_| {}));
    assert_eq!((tree.bytes(), tree.nodes.len()), (0, 0));
    assert_eq!(find(&mut tree, &model(0), &sequence).reason, Reason::Evicted);
}

#[test]
fn states_of_long_prefills_go_before_those_of_the_last_turn() {
    let mut tree = Tree::new(BYTES * 200 + 2 * STATE_BYTES);
    let sequence = counting(0..200);
    assert!(keep(&mut tree, &model(0), &sequence, &[40, 80, 120, 180, 200]).0);
    assert_eq!(find(&mut tree, &model(0), &sequence).restored, 180);
    let other = [&sequence[..150], &[7; 20]].concat();
    assert_eq!(find(&mut tree, &model(0), &other).restored, 0, "there was no room for earlier ones");
}

//! What the sources of a package name: every path of every `use` tree, expression, type and macro, resolved to where it
//! leads. Items under `#[cfg(test)]`, and whole files under it, are left out: tests may name what they simulate.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Expr, ExprLit, ImplItemFn, Item, ItemExternCrate, ItemMod, ItemUse, Lit, Macro, Meta, MetaList, UseTree,
    Visibility,
    visit::{self, Visit},
};

/// Files by their path below the repository's root.
pub type Files = BTreeMap<String, String>;

/// Every Rust file below some folders of the repository.
pub fn files(root: &Path, folders: &[&str]) -> Files {
    fn walk(root: &Path, folder: &Path, found: &mut Files) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = Files::new();
    folders.iter().for_each(|folder| walk(root, &root.join(folder), &mut found));
    found
}

/// A path that a file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The file.
    pub file: String,
    /// The module that names it, from the root of its crate.
    pub module: Vec<String>,
    /// What is named: `crate` and the way from there, or another crate and the way from there.
    pub path: Vec<String>,
}

impl Name {
    /// Whether the path begins with these segments, written with `::` between them.
    pub fn is_below(&self, prefix: &str) -> bool {
        let prefix: Vec<&str> = prefix.split("::").collect();
        self.path.len() >= prefix.len() && self.path.iter().zip(&prefix).all(|(segment, wanted)| segment == wanted)
    }

    /// Whether a module below this one, written with `::` between the segments, names it.
    pub fn is_said_in(&self, module: &str) -> bool {
        let prefix: Vec<&str> = module.split("::").collect();
        self.module.len() >= prefix.len() && self.module.iter().zip(&prefix).all(|(segment, wanted)| segment == wanted)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} names {}", self.file, self.path.join("::"))
    }
}

/// What a crate's sources say.
#[derive(Debug, Default)]
pub struct Source {
    /// Every path that is named outside of tests.
    pub names: BTreeSet<Name>,
    /// Imports of everything that a module or crate has, which hide what is named.
    pub globs: BTreeSet<Name>,
    /// What is imported and passed on under another roof.
    pub passed_on: BTreeSet<Name>,
    /// Modules that the root declares, those of tests left out.
    pub rooms: BTreeSet<String>,
    /// Files that are part of the crate, those of tests among them.
    pub files: BTreeSet<String>,
}

/// Reads a crate from its root file, following its modules.
pub fn read(files: &Files, root: &str) -> Source {
    let mut source = Source::default();
    let folder = Path::new(root).parent().unwrap().to_owned();
    read_file(files, root, &folder, Vec::new(), false, &mut source);
    source
}

fn read_file(files: &Files, file: &str, folder: &Path, module: Vec<String>, tests: bool, source: &mut Source) {
    let text = files.get(file).unwrap_or_else(|| panic!("{file} is declared as a module and not there"));
    let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    source.files.insert(file.to_owned());
    let mut reader = Reader {
        file: file.to_owned(),
        module: vec![module.clone()],
        imported: HashMap::new(),
        names: BTreeSet::new(),
        globs: BTreeSet::new(),
        passed_on: BTreeSet::new(),
        children: Vec::new(),
    };
    reader.learn_imports(&parsed.items, &module);
    reader.visit_file(&parsed);
    if !tests {
        source.names.extend(reader.names);
        source.globs.extend(reader.globs);
        source.passed_on.extend(reader.passed_on);
        if module.is_empty() {
            source.rooms.extend(reader.children.iter().filter(|child| !child.of_tests).map(|child| child.name.clone()));
        }
    }
    for Child { name, inline, paths, of_tests } in reader.children {
        let mut folder = folder.to_owned();
        folder.extend(&inline);
        let usual = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
        let named: Vec<PathBuf> = paths.iter().map(|path| folder.join(path)).collect();
        let candidates = if named.is_empty() { usual.to_vec() } else { named };
        let mut module = module.clone();
        module.extend(inline);
        module.push(name.clone());
        let found: Vec<&str> =
            candidates.iter().filter_map(|path| path.to_str()).filter(|path| files.contains_key(*path)).collect();
        assert!(!found.is_empty(), "{file} declares {name}, which has no file");
        for found in found {
            read_file(files, found, &folder.join(&name), module.clone(), tests || of_tests, source);
        }
    }
}

struct Reader {
    file: String,
    /// The module at hand, and those around it in this file.
    module: Vec<Vec<String>>,
    /// What names of this file's imports stand for.
    imported: HashMap<String, Vec<String>>,
    names: BTreeSet<Name>,
    globs: BTreeSet<Name>,
    passed_on: BTreeSet<Name>,
    children: Vec<Child>,
}

/// A module with a file of its own.
struct Child {
    name: String,
    /// The inline modules around it.
    inline: Vec<String>,
    /// Files that attributes name; which one it is may depend on the build.
    paths: Vec<String>,
    of_tests: bool,
}

impl Reader {
    fn here(&self) -> &Vec<String> {
        self.module.last().unwrap()
    }

    fn learn_imports(&mut self, items: &[Item], module: &[String]) {
        for item in items {
            match item {
                Item::Use(item) if !is_for_tests(&item.attrs) => {
                    for (path, name) in leaves(&item.tree) {
                        let path = resolve(path, module);
                        self.imported.insert(name, path);
                    }
                }
                Item::Mod(item) => {
                    let mut path = vec!["crate".to_owned()];
                    path.extend(module.iter().cloned());
                    path.push(item.ident.to_string());
                    self.imported.entry(item.ident.to_string()).or_insert(path);
                }
                _ => {}
            }
        }
    }

    fn name(&mut self, path: Vec<String>) {
        let name = self.resolved(path);
        self.names.insert(name);
    }

    fn resolved(&self, path: Vec<String>) -> Name {
        let path = match self.imported.get(&path[0]) {
            Some(stands_for) => stands_for.iter().cloned().chain(path.into_iter().skip(1)).collect(),
            None => resolve(path, self.here()),
        };
        Name { file: self.file.clone(), module: self.here().clone(), path }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) || matches!(item, Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let of_tests = is_for_tests(&item.attrs);
        let Some((_, items)) = &item.content else {
            let inline = self.here()[self.module[0].len()..].to_vec();
            let paths = item.attrs.iter().filter_map(path_in).collect();
            self.children.push(Child { name: item.ident.to_string(), inline, paths, of_tests });
            return;
        };
        if of_tests {
            return;
        }
        let mut module = self.here().clone();
        module.push(item.ident.to_string());
        self.learn_imports(items, &module);
        self.module.push(module);
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for (path, known_as) in leaves(&item.tree) {
            let name = self.resolved(path.clone());
            if known_as == "*" {
                self.globs.insert(name.clone());
            }
            if !matches!(item.vis, Visibility::Inherited) {
                self.passed_on.insert(name.clone());
            }
            self.imported.entry(known_as).or_insert_with(|| name.path.clone());
            self.names.insert(name);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.name(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        self.name(vec![item.ident.to_string()]);
    }

    /// A macro's arguments are no syntax yet, but a path in them is a path.
    fn visit_macro(&mut self, item: &'ast Macro) {
        visit::visit_macro(self, item);
        self.name_paths_in(item.tokens.clone());
    }

    /// Nor are an attribute's: `#[derive(…)]` names crates too.
    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        visit::visit_meta_list(self, list);
        self.name_paths_in(list.tokens.clone());
    }
}

impl Reader {
    /// Names every `a::b::c` of some tokens, and what is below one with braces: `a::{b, c::d}`.
    fn name_paths_in(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.name_paths_in(group.stream()),
                TokenTree::Ident(first) => {
                    let mut path = vec![first.to_string()];
                    while colon(at + 1) && colon(at + 2) {
                        match tokens.get(at + 3) {
                            Some(TokenTree::Ident(segment)) => path.push(segment.to_string()),
                            Some(TokenTree::Group(group)) => {
                                self.name_tree(&path, group.stream());
                                at += 3;
                                break;
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.name(path);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Names the branches of a `use` tree that stands in a macro.
    fn name_tree(&mut self, before: &[String], branches: TokenStream) {
        let text = format!("{}::{{{branches}}}", before.join("::"));
        if let Ok(tree) = syn::parse_str::<UseTree>(&text) {
            leaves(&tree).into_iter().for_each(|(path, _)| self.name(path));
        }
    }
}

/// The paths of a `use` tree, each with the name that it has from here on.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    fn walk(tree: &UseTree, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
        let with = |segment: String| before.iter().cloned().chain([segment]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => walk(&path.tree, &with(path.ident.to_string()), found),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, before, found)),
            UseTree::Glob(_) => found.push((before.to_vec(), "*".to_owned())),
            UseTree::Name(name) if name.ident == "self" => {
                found.push((before.to_vec(), before.last().cloned().unwrap_or_default()));
            }
            UseTree::Name(name) => found.push((with(name.ident.to_string()), name.ident.to_string())),
            UseTree::Rename(name) if name.ident == "self" => found.push((before.to_vec(), name.rename.to_string())),
            UseTree::Rename(name) => found.push((with(name.ident.to_string()), name.rename.to_string())),
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// Where a path leads that is named in a module of a crate.
fn resolve(path: Vec<String>, module: &[String]) -> Vec<String> {
    let mut at = module.to_vec();
    let mut rest = path.iter().peekable();
    match path[0].as_str() {
        "crate" => return path,
        "self" | "super" => {}
        _ => return path,
    }
    while let Some(segment) = rest.next_if(|segment| *segment == "super" || *segment == "self") {
        if segment == "super" {
            at.pop();
        }
    }
    ["crate".to_owned()].into_iter().chain(at).chain(rest.cloned()).collect()
}

/// `#[cfg(test)]`, and nothing that is there in other builds too.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// The file that `#[path = "…"]` or `#[cfg_attr(…, path = "…")]` names.
fn path_in(attribute: &Attribute) -> Option<String> {
    let text = match &attribute.meta {
        Meta::NameValue(value) if value.path.is_ident("path") => match &value.value {
            Expr::Lit(ExprLit { lit: Lit::Str(path), .. }) => path.value(),
            _ => return None,
        },
        Meta::List(list) if list.path.is_ident("cfg_attr") => {
            list.tokens.to_string().split_once("path = ").map(|(_, path)| path.to_owned())?
        }
        _ => return None,
    };
    Some(text.trim_matches('"').to_owned())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

//! Chooses kernel modules: those that the recipe lists, with what they depend on.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::rc::Rc;

use super::elf::Elf;
use super::module_index;
use crate::tree::{InsertError, Kind, Tree};

/// A kernel module.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with `_` for `-`.
    pub(super) name: String,
    /// Where it is, below the folder of the kernel's version.
    pub(super) path: String,
    /// The entries of `.modinfo`, in order.
    info: Vec<(String, String)>,
    /// The symbols that it offers to other modules.
    pub(super) symbols: Vec<String>,
}

/// Why the modules are not as the recipe wants them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    /// Neither a module nor built into the kernel.
    #[error("the kernel has no module `{name}`, which {wanted_by} asks for")]
    Missing {
        /// Its name.
        name: String,
        /// The recipe or a module.
        wanted_by: String,
    },
    /// It cannot be read.
    #[error("the kernel module {path} is damaged: {reason}")]
    Damaged {
        /// Where it is.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An index cannot be put into the tree.
    #[error(transparent)]
    Insert(#[from] InsertError),
}

impl Module {
    fn read(path: &str, packed: &[u8]) -> Result<Self, ModulesError> {
        let damaged = |reason: &str| ModulesError::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let mut bytes = Vec::new();
        match path.rsplit_once(".ko").map(|(_, suffix)| suffix) {
            Some("") => bytes.extend_from_slice(packed),
            Some(".xz") => {
                let mut decoder = liblzma::read::XzDecoder::new(packed);
                decoder.read_to_end(&mut bytes).map_err(|error| damaged(&error.to_string()))?;
            }
            Some(".zst") => zstd::stream::copy_decode(packed, &mut bytes)
                .map_err(|error| damaged(&error.to_string()))?,
            _ => return Err(damaged("its compression is not known")),
        }
        let elf = Elf::parse(&bytes).ok_or_else(|| damaged("it is no ELF file of x86-64"))?;
        let info = elf.section(".modinfo").ok_or_else(|| damaged("it has no .modinfo"))?;
        let info = info.split(|byte| *byte == 0).filter_map(|entry| {
            let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        let symbols = elf.symbols().filter_map(|name| name.strip_prefix("__crc_"));
        Ok(Self {
            name: name_of(path),
            path: path.to_owned(),
            info: info.collect(),
            symbols: symbols.map(str::to_owned).collect(),
        })
    }

    /// The values of a key of `.modinfo`.
    pub(super) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.info.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The names of the modules that must be there before.
    fn depends(&self) -> Vec<String> {
        let names = self.values("depends").flat_map(|value| value.split(','));
        names.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
    }

    /// The names of modules that should be there too, before and after.
    fn soft_depends(&self) -> Vec<String> {
        let words = self.values("softdep").flat_map(str::split_whitespace);
        words.filter(|word| !word.ends_with(':')).map(|word| word.replace('-', "_")).collect()
    }
}

/// The module's name that a path stands for.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit_once('/').map_or(path, |(_, file)| file);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Keeps `wanted` and `wanted_early` with their dependencies, removes the others, writes the
/// indexes. Returns path and bytes of `wanted_early` with dependencies in the order to load them.
///
/// # Errors
///
/// Returns the first module that is missing or damaged.
pub(super) fn prune(
    tree: &mut Tree,
    version: &str,
    wanted: &[String],
    wanted_early: &[String],
) -> Result<Vec<(String, Vec<u8>)>, ModulesError> {
    let folder = format!("usr/lib/modules/{version}");
    let library = Library::new(tree, &folder);
    let early = library.closure(wanted_early)?;
    let all = library.closure(&[wanted_early, wanted].concat())?;
    let early = early
        .iter()
        .filter_map(|module| {
            let bytes = tree.read_file(&format!("{folder}/{}", module.path))?;
            Some((module.path.clone(), bytes.to_vec()))
        })
        .collect();
    let order = tree.read_text(&format!("{folder}/modules.order")).unwrap_or_default();
    let order: BTreeMap<String, usize> =
        order.lines().enumerate().map(|(index, path)| (name_of(path), index)).collect();
    let mut sorted: Vec<&Module> = all.iter().map(Rc::as_ref).collect();
    sorted.sort_by_key(|module| {
        (order.get(&module.name).copied().unwrap_or(usize::MAX), &module.path)
    });
    let dependencies: BTreeMap<&str, Vec<&Module>> = all
        .iter()
        .map(|module| (module.name.as_str(), library.dependencies(module, &all)))
        .collect();

    let keep: BTreeSet<String> =
        all.iter().map(|module| format!("{folder}/{}", module.path)).collect();
    let prefix = format!("{folder}/kernel/");
    tree.retain(|path, _| !path.starts_with(&prefix) || keep.contains(path));
    tree.remove_empty_directories(&format!("{folder}/kernel"));
    module_index::write(tree, &folder, &sorted, &dependencies)?;
    for name in ["modules.order", "modules.builtin.modinfo"] {
        tree.remove(&format!("{folder}/{name}"));
    }
    Ok(early)
}

/// All modules of a kernel; those that are asked for are read once.
struct Library {
    files: BTreeMap<String, (String, std::sync::Arc<Vec<u8>>)>,
    builtin: BTreeSet<String>,
    read: RefCell<BTreeMap<String, Rc<Module>>>,
}

impl Library {
    fn new(tree: &Tree, folder: &str) -> Self {
        let mut files = BTreeMap::new();
        for (path, node) in tree.below(&format!("{folder}/kernel")) {
            if let (Kind::File(bytes), Some(path)) = (&node.kind, path.get(folder.len() + 1..)) {
                files.insert(name_of(path), (path.to_owned(), bytes.clone()));
            }
        }
        let builtin = tree.read_text(&format!("{folder}/modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().map(name_of).collect();
        Self { files, builtin, read: RefCell::default() }
    }

    fn get(&self, name: &str) -> Result<Option<Rc<Module>>, ModulesError> {
        if let Some(module) = self.read.borrow().get(name) {
            return Ok(Some(module.clone()));
        }
        let Some((path, bytes)) = self.files.get(name) else { return Ok(None) };
        let module = Rc::new(Module::read(path, bytes)?);
        self.read.borrow_mut().insert(name.to_owned(), module.clone());
        Ok(Some(module))
    }

    /// The modules of these names and all they depend on, each after what it depends on.
    fn closure(&self, names: &[String]) -> Result<Vec<Rc<Module>>, ModulesError> {
        let mut done = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            let name = name.replace('-', "_");
            if !self.files.contains_key(&name) && !self.builtin.contains(&name) {
                return Err(ModulesError::Missing { name, wanted_by: "the recipe".to_owned() });
            }
            self.visit(&name, &mut seen, &mut done)?;
        }
        Ok(done)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        done: &mut Vec<Rc<Module>>,
    ) -> Result<(), ModulesError> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(module) = self.get(name)? else { return Ok(()) };
        for dependency in module.depends() {
            if !self.files.contains_key(&dependency) && !self.builtin.contains(&dependency) {
                return Err(ModulesError::Missing {
                    name: dependency,
                    wanted_by: format!("the module {name}"),
                });
            }
            self.visit(&dependency, seen, done)?;
        }
        for dependency in module.soft_depends() {
            self.visit(&dependency, seen, done)?;
        }
        done.push(module);
        Ok(())
    }

    /// What a module depends on, directly or not: the nearest to it first, as modprobe loads them
    /// from the end. `loaded_in` has each module after its own dependencies.
    fn dependencies<'a>(&self, module: &Module, loaded_in: &'a [Rc<Module>]) -> Vec<&'a Module> {
        let mut wanted = BTreeSet::new();
        let mut todo = module.depends();
        while let Some(name) = todo.pop() {
            if let Ok(Some(dependency)) = self.get(&name)
                && wanted.insert(name)
            {
                todo.extend(dependency.depends());
            }
        }
        let known = loaded_in.iter().rev().map(Rc::as_ref);
        known.filter(|candidate| wanted.contains(&candidate.name)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests;

//! From tensors of a file to a decoder.
//!
//! Owns names and shapes of the tensors of each layer. Matrices are repacked
//! straight from the mapped file, whose pages are let go as soon as they were
//! read, so that weights are resident once; or they come from the cache of
//! repacked ones ([`super::weights`]). Invariants: a tensor has
//! the shape that the metadata asks for and holds finite numbers; none that
//! belongs to the model is left out in silence. Errors name the tensor.

use super::{
    Progress,
    decoder::{Decoder, Experts, FeedForward, Gated, Layer, PerLayer, Told},
    gguf::{Config, Gguf, ModelError, QkNorm, RopeConfig, TensorData},
    linear::{Linear, Packed, choose},
    rope::{Factors, Rope},
    weights::{Place, Writer, file::Cached},
};
use crate::{control::room::Room, units::Bytes};
use std::collections::HashSet;

type Result<T> = std::result::Result<T, ModelError>;

/// Tensors that old converters wrote and that say what the metadata says.
const REDUNDANT: [&str; 2] = ["attn_rot_embd.weight", "rotary_emb.inv_freq"];

/// Encoders of pictures and sound and what joins them to the text model: files
/// of Ollama hold them, and text does not need them.
const NOT_TEXT: [&str; 3] = ["v.", "mm.", "a."];

/// Whether a tensor is of an encoder that text does not need.
fn is_not_text(name: &str) -> bool {
    NOT_TEXT.iter().any(|start| name.starts_with(start))
}

mod kept;

/// Where matrices come from, or go to.
enum Matrices<'a, 'w> {
    /// Repacked, into memory of this process.
    Private,
    /// Repacked into a file of the cache: the decoder gets none.
    Written(&'a mut Writer<'w>),
    /// Mapped; the number of the next one.
    Mapped(&'a Cached, usize),
}

/// Reads tensors, counts their bytes and remembers which they were.
struct Reader<'a, 'w> {
    gguf: &'a Gguf,
    matrices: Matrices<'a, 'w>,
    read: HashSet<String>,
    bytes: u64,
    progress: Progress<'a>,
}

impl Reader<'_, '_> {
    fn bad(&self, name: &str, what: impl Into<String>) -> ModelError {
        ModelError::Tensor {
            path: self.gguf.path().into(),
            name: name.into(),
            what: what.into(),
        }
    }

    fn done_with(&mut self, name: &str, bytes: usize) {
        self.gguf.let_go(name);
        self.read.insert(name.to_owned());
        self.bytes += bytes as u64;
        (self.progress)(Bytes(self.bytes), self.gguf.tensor_bytes());
    }

    fn linear(&mut self, name: &str, out: usize, from: usize) -> Result<Linear> {
        let [linear] = self.rows(name, [out], from)?;
        Ok(linear)
    }

    /// The matrices whose rows are those of one tensor.
    fn rows<const N: usize>(
        &mut self,
        name: &str,
        outs: [usize; N],
        from: usize,
    ) -> Result<[Linear; N]> {
        let mut data = self.gguf.data(name, &[outs.iter().sum(), from])?;
        let bytes = data.bytes.len();
        let each = outs.map(|out| self.take(name, &mut data, (out, from)));
        // `try_map` is not stable.
        let each: Vec<_> = each.into_iter().collect::<Result<_>>()?;
        self.done_with(name, bytes);
        each.try_into()
            .map_err(|_| self.bad(name, "has other rows than it should"))
    }

    /// One matrix for each expert.
    fn experts(&mut self, name: &str, count: usize, shape: (usize, usize)) -> Result<Vec<Linear>> {
        let mut data = self.gguf.data(name, &[count, shape.0, shape.1])?;
        let bytes = data.bytes.len();
        let each = (0..count).map(|_| self.take(name, &mut data, shape));
        let each = each.collect::<Result<_>>()?;
        self.done_with(name, bytes);
        Ok(each)
    }

    /// A matrix of the next rows of a tensor.
    fn take(
        &mut self,
        name: &str,
        data: &mut TensorData<'_>,
        shape: (usize, usize),
    ) -> Result<Linear> {
        let bytes = data.format.matrix_bytes(shape.0, shape.1);
        let split = bytes.and_then(|bytes| data.bytes.split_at_checked(bytes));
        let (rows, rest) = split.ok_or_else(|| self.bad(name, "ends within a row"))?;
        data.bytes = rest;
        let isa = choose::active();
        let packed = |rows| Packed::new(name, data.format, shape, rows);
        let linear = isa.and_then(|isa| {
            Ok(match &mut self.matrices {
                Matrices::Private => Some(Linear::over(isa, packed(rows)?)),
                Matrices::Written(writer) => {
                    let packed = packed(rows)?;
                    writer.add(name, &packed);
                    (!writer.has_failed()).then(|| Linear::over(isa, packed.emptied()))
                }
                Matrices::Mapped(cached, next) => {
                    let mapped = cached.matrix(*next, name, data.format, shape);
                    *next += 1;
                    mapped.map(|mapped| Linear::over(isa, mapped))
                }
            })
        });
        match linear {
            Ok(Some(linear)) => Ok(linear),
            Ok(None) => Err(self.bad(name, "differs in the cached weights")),
            Err(e) => {
                let message = e.to_string();
                let what = message.strip_prefix(&format!("tensor {name}: "));
                Err(self.bad(name, what.unwrap_or(&message)))
            }
        }
    }

    /// A vector, widened to f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Box<[f32]>> {
        let data = self.gguf.data(name, &[len])?;
        self.floats(name, data, len)
    }

    /// Vectors of this length, one for each expert.
    fn vectors(&mut self, name: &str, count: usize, len: usize) -> Result<Vec<Box<[f32]>>> {
        let data = self.gguf.data(name, &[count, len])?;
        let all = self.floats(name, data, count * len)?;
        Ok(all.chunks_exact(len).map(Into::into).collect())
    }

    fn floats(&mut self, name: &str, data: TensorData<'_>, len: usize) -> Result<Box<[f32]>> {
        let values = data.format.dequantize(data.bytes, len);
        self.done_with(name, data.bytes.len());
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values.into()),
            Some(at) => Err(self.bad(
                name,
                format!(
                    "holds {} at {at}: the file is damaged, fetch it again",
                    values[at]
                ),
            )),
        }
    }

    /// A vector, if it must be there.
    fn vector_if(&mut self, there: bool, name: &str, len: usize) -> Result<Option<Box<[f32]>>> {
        match there {
            true => self.vector(name, len).map(Some),
            false => Ok(None),
        }
    }

    fn layer(&mut self, c: &Config, i: usize) -> Result<Layer> {
        let head_dim = c.head_dim_of(i);
        let (q_width, kv_width) = (c.heads * head_dim, c.kv_heads * head_dim);
        let (family, hidden) = (c.family, c.hidden);
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let bias = |part: &str| format!("blk.{i}.{part}.bias");
        let windowed = c.windowed(i).is_some();
        let stores = i < c.storing;
        let fused = name("attn_qkv");
        let (q, own) = if family.fused || self.gguf.has(&fused) {
            if !stores {
                let what = "holds keys and values of a layer that looks at another's";
                return Err(self.bad(&fused, what));
            }
            let [q, k, v] = self.rows(&fused, [q_width, kv_width, kv_width], hidden)?;
            (q, Some([k, v]))
        } else {
            let q = self.linear(&name("attn_q"), q_width, hidden)?;
            let own = match stores {
                true => Some([
                    self.linear(&name("attn_k"), kv_width, hidden)?,
                    self.linear(&name("attn_v"), kv_width, hidden)?,
                ]),
                false => None,
            };
            (q, own)
        };
        let has_bias = family.qkv_bias || self.gguf.has(&bias("attn_q"));
        let out_bias = family.out_bias || self.gguf.has(&bias("attn_output"));
        let [of_q, of_k] = match family.qk_norm {
            QkNorm::None => [0; 2],
            QkNorm::Heads => [head_dim; 2],
            QkNorm::Rows => [q_width, kv_width],
        };
        Ok(Layer {
            rope: match c.turned.has(i) {
                true => usize::from(windowed),
                false => usize::from(c.sliding.is_some()) + 1,
            },
            attn: c.attention(i),
            head_dim,
            turned: c.rotary_of(windowed),
            stored: c.stored_by(i),
            attn_norm: self.vector_if(family.norms_before, &name("attn_norm"), hidden)?,
            q,
            key_value: own,
            qkv_bias: match has_bias {
                true => Some([
                    self.vector(&bias("attn_q"), q_width)?,
                    self.vector(&bias("attn_k"), kv_width)?,
                    self.vector(&bias("attn_v"), kv_width)?,
                ]),
                false => None,
            },
            q_norm: self.vector_if(of_q > 0, &name("attn_q_norm"), of_q)?,
            k_norm: self.vector_if(of_k > 0 && stores, &name("attn_k_norm"), of_k)?,
            v_norm: family.value_norm.then(|| vec![1.0; head_dim].into()),
            sinks: self.vector_if(family.sinks, &name("attn_sinks"), c.heads)?,
            out: self.linear(&name("attn_output"), hidden, q_width)?,
            out_bias: self.vector_if(out_bias, &bias("attn_output"), hidden)?,
            post_attn_norm: self.vector_if(
                family.norms_behind,
                &name("post_attention_norm"),
                hidden,
            )?,
            ffn_norm: self.vector_if(family.norms_before, &name(family.ffn_norm), hidden)?,
            feed_forward: match c.experts {
                None => FeedForward::All(self.gated(c, i, "", c.feed_forward_of(i))?),
                Some(_) => FeedForward::Some(self.some(c, i)?),
            },
            post_ffn_norm: self.vector_if(family.norms_behind, &name("post_ffw_norm"), hidden)?,
            told: match c.per_layer {
                Some(width) => Some(Told {
                    gate: self.linear(&name("inp_gate"), width, hidden)?,
                    out: self.linear(&name("proj"), hidden, width)?,
                    norm: self.vector(&name("post_norm"), hidden)?,
                }),
                None => None,
            },
            scale: match self.gguf.has(&name("layer_output_scale")) {
                true => Some(self.vector(&name("layer_output_scale"), 1)?[0]),
                false => None,
            },
        })
    }

    /// A feed-forward network whose tensors have names with this end.
    fn gated(&mut self, c: &Config, i: usize, end: &str, width: usize) -> Result<Gated> {
        let name = |part: &str| format!("blk.{i}.ffn_{part}{end}.weight");
        let [gate, up] = match c.family.fused {
            true => self.rows(&name("up"), [width; 2], c.hidden)?,
            false => [
                self.linear(&name("gate"), width, c.hidden)?,
                self.linear(&name("up"), width, c.hidden)?,
            ],
        };
        Ok(Gated {
            gate,
            up,
            down: self.linear(&name("down"), c.hidden, width)?,
            bias: None,
        })
    }

    /// The experts of a layer, and what chooses from them.
    fn some(&mut self, c: &Config, i: usize) -> Result<Experts> {
        let Some(e) = c.experts else {
            return Err(self.bad("ffn_gate_inp", "is of no use without experts"));
        };
        let (wide, hidden) = (e.feed_forward, c.hidden);
        let name = |part: &str| format!("blk.{i}.ffn_{part}.weight");
        let bias = |part: &str| format!("blk.{i}.ffn_{part}.bias");
        let router = self.linear(&name("gate_inp"), e.count, hidden)?;
        let gates = self.experts(&name("gate_exps"), e.count, (wide, hidden))?;
        let ups = self.experts(&name("up_exps"), e.count, (wide, hidden))?;
        let downs = self.experts(&name("down_exps"), e.count, (hidden, wide))?;
        let mut each: Vec<_> = gates
            .into_iter()
            .zip(ups)
            .zip(downs)
            .map(|((gate, up), down)| Gated {
                gate,
                up,
                down,
                bias: None,
            })
            .collect();
        if e.bias {
            let of_gates = self.vectors(&bias("gate_exps"), e.count, wide)?;
            let of_ups = self.vectors(&bias("up_exps"), e.count, wide)?;
            let of_downs = self.vectors(&bias("down_exps"), e.count, hidden)?;
            let biases = of_gates.into_iter().zip(of_ups).zip(of_downs);
            for (expert, ((gate, up), down)) in each.iter_mut().zip(biases) {
                expert.bias = Some([gate, up, down]);
            }
        }
        Ok(Experts {
            router,
            router_bias: self.vector_if(e.bias, &bias("gate_inp"), e.count)?,
            each,
            shared: match e.shared {
                Some(width) => Some(self.gated(c, i, "_shexp", width)?),
                None => None,
            },
        })
    }

    /// What divides the frequencies, if the file has it.
    fn rope_factors(&mut self, c: &Config, which: &str) -> Result<Option<Box<[f32]>>> {
        let name = format!("rope_{which}.weight");
        if !self.gguf.has(&name) {
            return Ok(None);
        }
        let factors = self.vector(&name, c.rotary / 2)?;
        if let Some(by) = factors.iter().find(|&&by| !(1e-3..=1e30).contains(&by)) {
            return Err(self.bad(&name, format!("divides a frequency by {by}")));
        }
        Ok(Some(factors))
    }

    /// The rotary embeddings: see [`Decoder`].
    fn ropes(&mut self, c: &Config) -> Result<Vec<Rope>> {
        let freqs = self.rope_factors(c, "freqs")?;
        let [long, short] =
            ["factors_long", "factors_short"].map(|which| self.rope_factors(c, which));
        let (long, short) = (long?, short?);
        if long.is_some() != short.is_some() {
            let name = ["rope_factors_long.weight", "rope_factors_short.weight"];
            let what = "is missing: of the factors for long and short texts both are needed";
            return Err(self.bad(name[usize::from(long.is_some())], what));
        }
        let factors = Factors {
            short: freqs.as_deref().or(short.as_deref()),
            long: long.as_deref(),
        };
        let rope = |r: RopeConfig, turned, factors| {
            Rope::new((c.head_dim, turned), r.base, r.scaling, factors)
        };
        let mut ropes = vec![rope(c.rope, c.rotary, factors)];
        if let Some(s) = &c.sliding {
            let turned = c.rotary_of(true);
            let none = Factors::default();
            ropes.push(rope(s.rope, turned, if s.factors { factors } else { none }));
        }
        if !(0..c.layers).all(|i| c.turned.has(i)) {
            ropes.push(Rope::none(c.head_dim));
        }
        Ok(ropes)
    }

    /// No tensor may be left over: the model would not be what it was.
    fn all_read(&self, c: &Config) -> Result<()> {
        let left = self.gguf.tensors().map(|(name, ..)| name).filter(|name| {
            !self.read.contains(*name)
                && !is_not_text(name)
                && !REDUNDANT.iter().any(|end| name.ends_with(end))
        });
        match left.min() {
            None => Ok(()),
            Some(name) => Err(self.bad(
                name,
                format!("has no place in a {} decoder of kvpsi", c.family.name),
            )),
        }
    }
}

impl Decoder {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the metadata says or holds
    /// what is no number, or the file holds tensors that this decoder would
    /// have to use and cannot; or there is too little memory for the weights.
    pub fn load(gguf: &Gguf) -> Result<Self> {
        Self::load_with(gguf, &mut |_, _| ())
    }

    /// [`Decoder::load`] for whoever wants to show how far it is.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(gguf: &Gguf, progress: Progress<'_>) -> Result<Self> {
        choose::active().map_err(ModelError::Kernels)?;
        let needed = packed_bytes(gguf);
        if let Some(room) = Room::now().filter(|room| room.bytes < needed) {
            return Err(ModelError::Memory {
                path: gguf.path().into(),
                needed,
                available: room.bytes,
                of: room.of,
            });
        }
        Self::read(gguf, Matrices::Private, progress)
    }

    fn read(gguf: &Gguf, matrices: Matrices<'_, '_>, progress: Progress<'_>) -> Result<Self> {
        let c = gguf.config().clone();
        let mut from = Reader {
            gguf,
            matrices,
            read: HashSet::new(),
            bytes: 0,
            progress,
        };
        let embedding = from.linear("token_embd.weight", c.vocab, c.hidden)?;
        let per_layer = match c.per_layer {
            Some(width) => {
                let all = width * c.layers;
                Some(PerLayer {
                    table: from.linear("per_layer_token_embd.weight", c.vocab, all)?,
                    product: from.linear("per_layer_model_proj.weight", all, c.hidden)?,
                    norm: from.vector("per_layer_proj_norm.weight", width)?,
                })
            }
            None => None,
        };
        let layers = (0..c.layers).map(|i| from.layer(&c, i));
        let layers = layers.collect::<Result<_>>()?;
        let norm = from.vector("output_norm.weight", c.hidden)?;
        let output = match from.gguf.has("output.weight") {
            true => Some(from.linear("output.weight", c.vocab, c.hidden)?),
            false => None,
        };
        let ropes = from.ropes(&c)?;
        from.all_read(&c)?;
        Ok(Self {
            ropes,
            weights: Bytes(from.bytes),
            place: Place::Private,
            config: c,
            embedding,
            per_layer,
            layers,
            norm,
            output,
        })
    }
}

/// About as many bytes as all matrices have in tiles: those that are not of the
/// decoder are among them, and of a tensor of several matrices the last tiles
/// are not.
fn packed_bytes(gguf: &Gguf) -> Bytes {
    let matrices = gguf.tensors().filter(|(name, ..)| !is_not_text(name));
    let matrices = matrices.filter_map(|(_, format, shape)| {
        let [count @ .., n, k] = shape else {
            return None;
        };
        let [n, k] = [*n, *k].map(usize::try_from);
        let bytes = Packed::bytes_of(format, n.ok()?, k.ok()?)?;
        Some(count.iter().product::<u64>().saturating_mul(bytes as u64))
    });
    Bytes(matrices.fold(0, u64::saturating_add))
}

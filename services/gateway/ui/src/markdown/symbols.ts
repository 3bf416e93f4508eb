/** Names of TeX and the characters that they stand for. */

/** A table without a prototype: `constructor` and the like are no names in it. */
export const table = <T>(entries: Record<string, T>): Record<string, T> => Object.assign(Object.create(null), entries);

const pairs = (text: string): Record<string, string> =>
  table(Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("=", 2) as [string, string])));

/** Letters and other things that stand for themselves. */
export const LETTERS = pairs(`
  alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ mu=μ nu=ν
  xi=ξ omicron=ο pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω
  Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω
  infty=∞ partial=∂ nabla=∇ hbar=ℏ ell=ℓ Re=ℜ Im=ℑ aleph=ℵ wp=℘ emptyset=∅ varnothing=∅ top=⊤ bot=⊥ angle=∠ degree=°
  imath=ı jmath=ȷ ldots=… dots=… cdots=⋯ vdots=⋮ ddots=⋱ prime=′ square=□ blacksquare=■ triangle=△ checkmark=✓
`);

/** What stands between things, with room around. */
export const OPERATORS = pairs(`
  times=× cdot=⋅ div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=∙ oplus=⊕ ominus=⊖ otimes=⊗ odot=⊙ wedge=∧ land=∧ vee=∨ lor=∨
  cap=∩ cup=∪ setminus=∖ leq=≤ le=≤ geq=≥ ge=≥ neq=≠ ne=≠ ll=≪ gg=≫ approx=≈ sim=∼ simeq=≃ cong=≅ equiv=≡ propto=∝
  in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃ supseteq=⊇ to=→ rightarrow=→ leftarrow=← gets=← Rightarrow=⇒ Leftarrow=⇐
  leftrightarrow=↔ Leftrightarrow=⇔ iff=⟺ implies=⟹ mapsto=↦ longrightarrow=⟶ uparrow=↑ downarrow=↓ hookrightarrow=↪
  rightharpoonup=⇀ mid=∣ parallel=∥ perp=⊥ models=⊨ vdash=⊢ forall=∀ exists=∃ nexists=∄ neg=¬ lnot=¬ therefore=∴ because=∵
  colon=: vert=| Vert=‖ lvert=| rvert=| lVert=‖ rVert=‖ langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ lbrace={ rbrace=} backslash=\\ triangleq=≜
`);
OPERATORS["|"] = "‖";

/** Signs whose limits stand above and below where there is room. */
export const LARGE = pairs("sum=∑ prod=∏ coprod=∐ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂ bigvee=⋁ bigwedge=⋀");
export const INTEGRALS = pairs("int=∫ iint=∬ iiint=∭ oint=∮");

/** Functions with names; those in the second set take limits below. */
export const FUNCTIONS = new Set(
  ("sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan exp log ln lg deg dim ker hom arg gcd lcm det Pr " +
    "lim limsup liminf max min sup inf argmax argmin softmax").split(" "),
);
export const WITH_LIMITS = new Set("lim limsup liminf max min sup inf argmax argmin det gcd Pr".split(" "));

export const ACCENTS = pairs(
  "hat=^ widehat=^ bar=¯ overline=¯ vec=→ overrightarrow=→ tilde=~ widetilde=~ dot=˙ ddot=¨ check=ˇ breve=˘ overbrace=⏞",
);
export const UNDER = pairs("underline=_ underbrace=⏟");

/** Widths in em. */
export const SPACES: Record<string, number> = table({
  ",": 0.167, ":": 0.222, ">": 0.222, ";": 0.278, "!": -0.167, " ": 0.25, "~": 0.25, quad: 1, qquad: 2, enspace: 0.5, thinspace: 0.167,
});

/** Arrows that grow with what is written on them. */
export const ARROWS = pairs("xrightarrow=→ xleftarrow=← xleftrightarrow=↔ xRightarrow=⇒ xLeftarrow=⇐ xmapsto=↦");

/** Alphabets: where capitals, small letters and digits of each begin in Unicode, and the exceptions. */
const ALPHABETS = table<{ upper: number; lower: number; digit?: number; but?: Record<string, string> }>({
  mathbb: { upper: 0x1d538, lower: 0x1d552, digit: 0x1d7d8, but: pairs("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ") },
  mathcal: { upper: 0x1d49c, lower: 0x1d4b6, but: pairs("B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ e=ℯ g=ℊ o=ℴ") },
  mathfrak: { upper: 0x1d504, lower: 0x1d51e, but: pairs("C=ℭ H=ℌ I=ℑ R=ℜ Z=ℨ") },
  mathbf: { upper: 0x1d400, lower: 0x1d41a, digit: 0x1d7ce },
});
ALPHABETS.mathscr = ALPHABETS.mathcal!;
ALPHABETS.boldsymbol = ALPHABETS.mathbf!;
ALPHABETS.bm = ALPHABETS.mathbf!;

export const isAlphabet = (name: string): boolean => name in ALPHABETS;

/** A text in another alphabet, as far as it has the characters. */
export function inAlphabet(name: string, text: string): string {
  const { upper, lower, digit, but } = ALPHABETS[name]!;
  return text.replace(/[A-Za-z0-9]/g, (char) => {
    if (but?.[char]) return but[char];
    const [first, base] = /[A-Z]/.test(char) ? [upper, 65] : /[a-z]/.test(char) ? [lower, 97] : [digit, 48];
    return first === undefined ? char : String.fromCodePoint(first + char.charCodeAt(0) - base!);
  });
}

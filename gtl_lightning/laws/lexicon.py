"""Words of the sample's grammar. Our own choice; nothing here is taken from any corpus."""

from __future__ import annotations

from collections.abc import Mapping

Words = tuple[str, ...]


def _words(line: str) -> Words:
    return tuple(line.split())


#: Classes shared by all archives.
SHARED: Mapping[str, Words] = {
    "det": _words("the this our each every any one another its their"),
    "prep": _words("of for with in under on over near from without through across"),
    "conj": _words("because when while whenever although unless where since"),
    "intro": _words("moreover finally consequently here recently thus however first instead surprisingly"),
    "adv": _words("often always strongly rarely directly slowly also essentially nearly locally"),
    "we_verb": _words(
        "study present consider describe propose introduce analyse derive examine develop compute measure explore "
        "revisit"
    ),
    "that_verb": _words("show prove find argue observe conclude demonstrate conjecture"),
    "verb": _words(
        "yields determines improves limits explains controls requires supports reduces predicts describes follows "
        "changes defines replaces extends"
    ),
    "adj": _words(
        "new simple general small large stable local global exact fast weak strong optimal finite common robust "
        "classical recent complete natural single open"
    ),
    "noun": _words(
        "method result model problem approach theory system structure analysis example case solution property bound "
        "framework condition effect parameter limit scheme experiment question relation pattern process measure "
        "rate scale order value"
    ),
}

#: Archive -> verbs and adjectives of its own.
OWN: Mapping[str, Mapping[str, Words]] = {
    "cs": {
        "verb": _words("learns encodes schedules encrypts queries compiles ranks searches stores trains"),
        "adj": _words(
            "scalable distributed neural secure parallel efficient online semantic automatic wireless deep heuristic"
        ),
    },
    "math": {
        "verb": _words("implies preserves embeds commutes generates factors intersects vanishes bounds acts"),
        "adj": _words(
            "compact smooth abelian convex algebraic bounded infinite prime holomorphic symmetric random continuous"
        ),
    },
    "physics": {
        "verb": _words("scatters emits absorbs excites heats drives couples decays damps focuses"),
        "adj": _words(
            "thermal turbulent optical magnetic nonlinear viscous ultrafast charged cold electronic coherent dense"
        ),
    },
}

#: Archive -> category -> nouns of that topic; a few nouns belong to more than one.
TOPICS: Mapping[str, Mapping[str, Words]] = {
    "cs": {
        "cs.LG": _words(
            "network classifier gradient dataset kernel policy agent feature label layer embedding image sentence loss"
        ),
        "cs.NI": _words(
            "protocol packet router channel antenna node link server traffic cache sensor network delay cloud"
        ),
        "cs.DS": _words(
            "algorithm graph tree query index string heap path oracle database program compiler key cipher"
        ),
    },
    "math": {
        "math.AG": _words(
            "variety scheme sheaf curve bundle divisor ideal ring morphism cohomology group module field lattice"
        ),
        "math.PR": _words(
            "martingale chain walk distribution expectation percolation diffusion entropy matrix tail kernel "
            "measure density moment"
        ),
        "math.DG": _words(
            "manifold metric curvature geodesic operator flow foliation tensor surface knot boundary homotopy "
            "equation spectrum"
        ),
    },
    "physics": {
        "physics.optics": _words(
            "laser pulse cavity waveguide photon lens fibre grating polariton beam crystal resonator spectrum field"
        ),
        "physics.flu-dyn": _words(
            "vortex drop jet wall bubble wake viscosity turbulence wave flow pressure boundary film plume"
        ),
        "physics.plasm-ph": _words(
            "plasma ion electron tokamak sheath instability discharge target wave collision density temperature "
            "current field"
        ),
    },
}

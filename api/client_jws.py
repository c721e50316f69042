"""What the library is told of the JWS (RFC 7515) that clients sign: proofs of DPoP, and assertions."""

from joserfc.jwa import JWSAlgModel
from joserfc.jws import JWSRegistry


class ClientJWS(JWSRegistry):
    """Room for a key or a certificate in the header, members that it does not know mean nothing (RFC 7515 4), and no
    algorithm is warned of on standard error. Which ones are fit, whoever reads the header decides before it checks."""

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max` bounds the header and the payload, each as it is encoded."""
        super().__init__(strict_check_header=False)
        self.max_header_length = self.max_payload_length = bytes_max

    def get_alg(self, name: str) -> JWSAlgModel:
        return self.algorithms[name]

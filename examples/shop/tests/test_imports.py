import io

from shop.extensions import db
from shop.models import Product, Upload


def csv_of(rows):
    return "sku,name,price,stock\n" + "".join(f"tea-{n},Tea {n},3.50,{n}\n" for n in range(rows))


def upload(owner, content, name="teas.csv"):
    file = (io.BytesIO(content if isinstance(content, bytes) else content.encode()), name)
    return owner.post("/imports/", data={"file": file}, follow_redirects=True).text


def test_an_import_goes_on_where_it_was_interrupted(owner, backend_memory, caplog):
    caplog.set_level("INFO")
    assert "0 of 450" in upload(owner, csv_of(450))
    backend_memory.interrupt(at=3)
    backend_memory.drain()
    assert "450 of 450" in owner.get("/imports/").text
    assert db.session.get(Product, "tea-449").stock == 449
    assert "import of teas.csv, from row 0 of 450" in caplog.text
    assert "import of teas.csv, from row 300 of 450" in caplog.text


def test_an_import_changes_the_products_that_are_there(owner, backend_memory):
    upload(owner, "\ufeffsku,name,price,stock\nmint,Mint,3.90,60\nmint,Moroccan Mint,4.20,70\n")
    backend_memory.drain()
    mint = db.session.get(Product, "mint")
    assert (mint.name, mint.cents, mint.stock) == ("Moroccan Mint", 420, 70)


def test_a_wrong_row_ends_the_import_and_is_named_on_the_page(owner, backend_memory):
    for row in (
        "tea,Tea,free,1",
        "tea,Tea,1",
        "a/b,Tea,1,1",
        "tea,,1,1",
        "tea,Tea,-1,1",
        "tea,Tea,NaN,1",
        "tea,Tea,Infinity,1",
        "tea,Tea,1,-1",
    ):
        upload(owner, csv_of(150) + row)
        backend_memory.drain()
        assert '<p class="problem">Row 151 ' in owner.get("/imports/").text
        db.session.query(Upload).delete()
        db.session.commit()
    assert backend_memory.buried() == []
    assert db.session.get(Product, "tea-99") is not None  # the rows of the last whole transaction stay
    assert db.session.get(Product, "tea-100") is None


def test_what_is_no_text_is_refused(owner, backend_memory):
    assert "This is no CSV in UTF-8" in upload(owner, b"PK\x03\x04\xff")
    assert backend_memory.scheduled() == []


def test_imports_and_the_dashboard_are_for_the_owner(client, owner):
    assert client.post("/imports/").status_code == 401
    for page in ("/imports/", "/backend/"):
        assert client.get(page).status_code == 401
    assert owner.get("/imports/").status_code == 200


def test_without_a_password_the_pages_of_the_owner_are_open_only_in_debug_mode(app, client, owner):
    client.environ_base["HTTP_AUTHORIZATION"] = "Basic Og=="  # an empty one
    for password in (None, ""):
        app.config["ADMIN_PASSWORD"] = password
        assert client.get("/imports/").status_code == owner.get("/imports/").status_code == 401
    app.debug = True
    assert client.get("/imports/").status_code == 200
